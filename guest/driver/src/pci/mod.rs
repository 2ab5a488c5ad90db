//! virtio devices on PCI, as sysfs shows them to root.
//!
//! A device is taken from the kernel's `virtio-pci`, which binds every virtio device, and given back on drop. A device that
//! something else in the kernel uses (a mounted file system, a registered cipher) is left alone.

pub mod bar;
pub mod capability;
mod claim;
mod guard;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use claim::Claim;
pub use guard::{Farewell, Guard};

/// PCI vendor of all virtio devices.
const VENDOR: u16 = 0x1af4;

/// A modern device has this plus its virtio device id (virtio 1.3 §4.1.2).
const MODERN: u16 = 0x1040;

/// Where the kernel lists PCI devices.
const DEVICES: &str = "/sys/bus/pci/devices";

/// Why a PCI device cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// A file of sysfs cannot be used.
    #[error("Cannot {what} {}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of sysfs says something else than expected.
    #[error("{} makes no sense", .0.display())]
    Strange(PathBuf),
    /// Another driver has it.
    #[error("{device} belongs to the driver {driver}")]
    Bound {
        /// Its address.
        device: String,
        /// The driver.
        driver: String,
    },
    /// Another process drives it.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// It has none of what virtio 1.x wants.
    #[error("{device} has no {what} (virtio 1.3 §4.1.4)")]
    Missing {
        /// Its address.
        device: String,
        /// What is missing.
        what: &'static str,
    },
    /// It points outside of itself.
    #[error("A capability of {0} points outside of its memory")]
    OutOfRange(String),
}

/// Gives an operation on a file its context.
fn at<T>(what: &'static str, path: &Path, result: io::Result<T>) -> Result<T, PciError> {
    result.map_err(|source| PciError::File { what, path: path.to_owned(), source })
}

/// A device that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its directory.
    path: PathBuf,
    /// Its virtio device id.
    pub id: u16,
}

impl Found {
    /// All virtio devices, by their addresses. None where there is no PCI.
    pub fn all() -> Result<Vec<Self>, PciError> {
        Self::under(Path::new(DEVICES))
    }

    fn under(devices: &Path) -> Result<Vec<Self>, PciError> {
        let entries = match fs::read_dir(devices) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => at("list", devices, entries)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = at("list", devices, entry)?.path();
            if let Some(id) = virtio_id(&path)? {
                found.push(Self { path, id });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The device at an address like `0000:00:05.0`, or without the domain, `00:05.0`.
    pub fn at(address: &str) -> Result<Option<Self>, PciError> {
        let full = if address.matches(':').count() == 1 { format!("0000:{address}") } else { address.into() };
        Ok(Self::all()?.into_iter().find(|found| found.address() == full))
    }

    /// Its address on the bus.
    pub fn address(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The name of the driver that has it.
    pub fn driver(&self) -> Option<String> {
        link(&self.file("driver"))
    }

    /// The name of the virtio driver that `virtio-pci` has given it to.
    pub fn user(&self) -> Option<String> {
        let entries = fs::read_dir(&self.path).ok()?;
        let mut children = entries.filter_map(Result::ok).filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .strip_prefix("virtio")
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        });
        children.find_map(|child| link(&child.path().join("driver")))
    }
}

/// The last part of what a symbolic link points to.
fn link(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// The virtio device id, if it is a modern virtio device. Transitional ones have other numbers, and nobody makes any of the
/// devices that we drive.
fn virtio_id(path: &Path) -> Result<Option<u16>, PciError> {
    if number(&path.join("vendor"))? != u64::from(VENDOR) {
        return Ok(None);
    }
    let device = number(&path.join("device"))?;
    Ok(u16::try_from(device).ok().and_then(|device| device.checked_sub(MODERN)).filter(|&id| id > 0))
}

/// A file like `0x1af4`.
fn number(path: &Path) -> Result<u64, PciError> {
    let text = at("read", path, fs::read_to_string(path))?;
    let digits = text.trim().trim_start_matches("0x");
    u64::from_str_radix(digits, 16).map_err(|_| PciError::Strange(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn device(root: &Path, address: &str, vendor: &str, device: &str) -> PathBuf {
        let path = root.join(address);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("vendor"), format!("{vendor}\n")).unwrap();
        fs::write(path.join("device"), format!("{device}\n")).unwrap();
        path
    }

    #[test]
    fn only_modern_virtio_devices_are_found_and_in_order() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "0000:00:05.0", "0x1af4", "0x107f");
        device(root.path(), "0000:00:03.0", "0x1af4", "0x105a");
        device(root.path(), "0000:00:01.0", "0x8086", "0x107f");
        device(root.path(), "0000:00:02.0", "0x1af4", "0x1001");
        let found = Found::under(root.path()).unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.address(), found.id)).collect();
        assert_eq!(found, [("0000:00:03.0".into(), 26), ("0000:00:05.0".into(), 63)]);
        assert_eq!(Found::under(&root.path().join("nothing")).unwrap(), []);
    }

    #[test]
    fn the_driver_and_its_user_are_named() {
        let root = tempfile::tempdir().unwrap();
        let path = device(root.path(), "0000:00:05.0", "0x1af4", "0x105a");
        let found = Found { path: path.clone(), id: 26 };
        assert_eq!((found.driver(), found.user()), (None, None));
        symlink("../../../bus/pci/drivers/virtio-pci", path.join("driver")).unwrap();
        fs::create_dir(path.join("virtio3")).unwrap();
        fs::create_dir(path.join("virtio")).unwrap();
        assert_eq!((found.driver(), found.user()), (Some("virtio-pci".into()), None));
        symlink("../../../../bus/virtio/drivers/virtiofs", path.join("virtio3/driver")).unwrap();
        assert_eq!(found.user(), Some("virtiofs".into()));
    }

    #[test]
    fn nonsense_in_sysfs_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        device(root.path(), "0000:00:05.0", "virtio", "0x107f");
        assert!(matches!(Found::under(root.path()), Err(PciError::Strange(_))));
    }
}
