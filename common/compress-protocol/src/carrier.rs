//! How the device looks where a frontend can only show it as a file system (§1.7).

/// The virtio device ID of file systems.
pub const FS_DEVICE_ID: u16 = 26;
/// Bytes of the tag, which is what the configuration space of a file system begins with.
pub const FS_TAG_LEN: usize = 36;
/// What the tag of a compression device begins with.
pub const FS_TAG_PREFIX: &str = "vcomp";

/// Whether a file system with this configuration space is a compression device: its tag, which zeros fill up, is the prefix and
/// nothing but letters, digits, `-`, `_` or `.` behind it.
pub fn carries(config: &[u8; FS_TAG_LEN]) -> bool {
    let end = config.iter().position(|byte| *byte == 0).unwrap_or(FS_TAG_LEN);
    let (tag, fill) = config.split_at(end);
    let named = tag.strip_prefix(FS_TAG_PREFIX.as_bytes()).is_some_and(|rest| rest.iter().all(usual));
    named && fill.iter().all(|byte| *byte == 0)
}

fn usual(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &[u8]) -> [u8; FS_TAG_LEN] {
        core::array::from_fn(|index| text.get(index).copied().unwrap_or(0))
    }

    #[test]
    fn the_tag_tells_a_compression_device_from_a_file_system() {
        for name in ["vcomp", "vcomp0", "vcomp-vm1.data_2", "vcomp0123456789012345678901234567890"] {
            assert!(carries(&tag(name.as_bytes())), "{name}");
        }
        for name in ["", "vcom", "share", "Vcomp0", "xvcomp0", "vcomp 0", "vcomp/0"] {
            assert!(!carries(&tag(name.as_bytes())), "{name}");
        }
        assert!(!carries(&tag(b"vcomp0\0x")));
    }
}
