//! What the vhost-user session sees of a device.
