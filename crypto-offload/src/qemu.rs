//! Command lines for QEMU.
