//! Command lines of QEMU for a device.
