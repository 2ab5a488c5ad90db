//! The device as the vhost-user session sees it.
