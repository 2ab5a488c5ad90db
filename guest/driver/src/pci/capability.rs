//! Configuration space: the command register, and the capabilities that say where a virtio device keeps its structures
//! (virtio 1.3 §4.1.4).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::{Found, PciError, at};

/// PCI: command register.
pub const COMMAND: u64 = 0x04;
/// The device answers to accesses of its memory.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The device may access our memory.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// The device keeps its interrupt line quiet.
pub const COMMAND_NO_INTX: u16 = 1 << 10;

const STATUS: u64 = 0x06;
const STATUS_HAS_LIST: u16 = 1 << 4;
const LIST: u64 = 0x34;
const VENDOR_SPECIFIC: u8 = 0x09;

/// VIRTIO_PCI_CAP_COMMON_CFG
const TYPE_COMMON: u8 = 1;
/// VIRTIO_PCI_CAP_NOTIFY_CFG
const TYPE_NOTIFY: u8 = 2;
/// VIRTIO_PCI_CAP_DEVICE_CFG
const TYPE_DEVICE: u8 = 4;
/// VIRTIO_PCI_CAP_PCI_CFG
const TYPE_WINDOW: u8 = 5;

/// A list has no more entries than fit into the 192 bytes that it may use, whatever a device says.
const MAX_ENTRIES: usize = 48;

/// A structure in the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of its memories.
    pub bar: u8,
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// Where everything is (virtio 1.3 §4.1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Common configuration.
    pub common: Option<Place>,
    /// Notification, and the distance between the addresses of queues.
    pub notify: Option<(Place, u32)>,
    /// The device's own configuration; it may have none.
    pub device: Option<Place>,
    /// A window through which the others can be read while a driver has the device: the capability itself.
    window: Option<u64>,
}

/// The configuration space of a device.
pub struct ConfigSpace {
    file: File,
    device: String,
}

impl ConfigSpace {
    /// Opens it.
    pub fn open(found: &Found) -> Result<Self, PciError> {
        let path = found.file("config");
        let file = at("open", &path, OpenOptions::new().read(true).write(true).open(&path))?;
        Ok(Self { file, device: found.address() })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn bytes<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn byte(&self, offset: u64) -> io::Result<u8> {
        Ok(self.bytes::<1>(offset)?[0])
    }

    fn word(&self, offset: u64) -> io::Result<u16> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn long(&self, offset: u64) -> io::Result<u32> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    /// Changes bits of the command register; returns what it was.
    pub fn command(&self, set: u16, clear: u16) -> io::Result<u16> {
        let old = self.word(COMMAND)?;
        self.file.write_all_at(&(old & !clear | set).to_le_bytes(), COMMAND)?;
        Ok(old)
    }

    /// Follows the list of capabilities. The first of each kind counts: it is the one the device prefers (virtio 1.3
    /// §4.1.4.1).
    pub fn layout(&self) -> io::Result<Layout> {
        let mut layout = Layout::default();
        if self.word(STATUS)? & STATUS_HAS_LIST == 0 {
            return Ok(layout);
        }
        let mut next = self.byte(LIST)? & !3;
        for _ in 0..MAX_ENTRIES {
            if next < 0x40 {
                break;
            }
            let at = u64::from(next);
            if self.byte(at)? == VENDOR_SPECIFIC {
                self.note(at, &mut layout)?;
            }
            next = self.byte(at + 1)? & !3;
        }
        Ok(layout)
    }

    /// `struct virtio_pci_cap`.
    fn note(&self, at: u64, layout: &mut Layout) -> io::Result<()> {
        let place = || {
            Ok::<_, io::Error>(Place {
                bar: self.byte(at + 4)?,
                offset: self.long(at + 8)?,
                len: self.long(at + 12)?,
            })
        };
        match self.byte(at + 3)? {
            TYPE_COMMON if layout.common.is_none() => layout.common = Some(place()?),
            TYPE_NOTIFY if layout.notify.is_none() => layout.notify = Some((place()?, self.long(at + 16)?)),
            TYPE_DEVICE if layout.device.is_none() => layout.device = Some(place()?),
            TYPE_WINDOW if layout.window.is_none() => layout.window = Some(at),
            _ => {}
        }
        Ok(())
    }

    /// Reads the device's own configuration through the window (virtio 1.3 §4.1.4.9), which disturbs no driver that has
    /// the device: the kernel's does not use it.
    pub fn peek(&self, layout: &Layout, offset: u32, buf: &mut [u8]) -> Result<(), PciError> {
        let missing = |what| PciError::Missing { device: self.device.clone(), what };
        let place = layout.device.ok_or_else(|| missing("configuration of its own"))?;
        let window = layout.window.ok_or_else(|| missing("window into its configuration"))?;
        let inside = u32::try_from(buf.len()).ok().and_then(|len| offset.checked_add(len));
        if inside.is_none_or(|end| end > place.len) {
            return Err(PciError::OutOfRange(self.device.clone()));
        }
        let read = |at: u32| {
            self.file.write_all_at(&[place.bar], window + 4)?;
            self.file.write_all_at(&at.to_le_bytes(), window + 8)?;
            self.file.write_all_at(&1u32.to_le_bytes(), window + 12)?;
            self.byte(window + 16)
        };
        for (at, byte) in (place.offset + offset..).zip(buf) {
            *byte = read(at).map_err(|source| PciError::File {
                what: "read the configuration through",
                path: self.device.clone().into(),
                source,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(bytes: &[u8]) -> ConfigSpace {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        ConfigSpace { file, device: "test".into() }
    }

    fn capability(next: u8, kind: u8, bar: u8, offset: u32, len: u32, extra: u32) -> Vec<u8> {
        let mut bytes = vec![9, next, 20, kind, bar, 0, 0, 0];
        for word in [offset, len, extra] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    fn with_list(list: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[6] = 1 << 4;
        bytes[0x34] = list.first().map_or(0, |(at, _)| *at as u8);
        for (at, entry) in list {
            bytes[*at..at + entry.len()].copy_from_slice(entry);
        }
        bytes
    }

    #[test]
    fn the_first_capability_of_each_kind_counts() {
        let list = [
            (0x40, vec![0x11, 0x48]),
            (0x48, capability(0x60, 1, 4, 0, 56, 0)),
            (0x60, capability(0x78, 1, 2, 64, 56, 0)),
            (0x78, capability(0x90, 2, 4, 0x3000, 0x1000, 4)),
            (0x90, capability(0xa8, 4, 4, 0x2000, 0x1000, 0)),
            (0xa8, capability(0, 5, 0, 0, 0, 0)),
        ];
        let layout = space(&with_list(&list)).layout().unwrap();
        assert_eq!(layout.common, Some(Place { bar: 4, offset: 0, len: 56 }));
        assert_eq!(layout.notify, Some((Place { bar: 4, offset: 0x3000, len: 0x1000 }, 4)));
        assert_eq!(layout.device, Some(Place { bar: 4, offset: 0x2000, len: 0x1000 }));
        assert_eq!(layout.window, Some(0xa8));
    }

    #[test]
    fn a_list_that_leads_back_to_itself_ends() {
        let list = [(0x40, capability(0x40, 1, 4, 0, 56, 0))];
        assert!(space(&with_list(&list)).layout().unwrap().common.is_some());
    }

    #[test]
    fn a_device_without_a_list_has_no_structures() {
        assert_eq!(space(&[0; 256]).layout().unwrap(), Layout::default());
    }

    #[test]
    fn bits_of_the_command_register_are_set_and_cleared() {
        let space = space(&[0, 0, 0, 0, 0b0000_0011, 0b0000_0100]);
        assert_eq!(space.command(COMMAND_MASTER, COMMAND_NO_INTX).unwrap(), 0x0403);
        assert_eq!(space.word(COMMAND).unwrap(), 0x0007);
    }
}
