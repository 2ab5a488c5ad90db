#![expect(unsafe_code, reason = "flock")]
//! Taking a device from the kernel, and giving it back.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::capability::ConfigSpace;
use super::guard::Farewell;
use super::{Found, PciError, at};

/// The driver that binds every virtio device on PCI.
const VIRTIO_PCI: &str = "virtio-pci";

/// A device that is ours alone until this is dropped.
pub struct Claim {
    found: Found,
    config: ConfigSpace,
    /// Whose it was.
    driver: Option<String>,
}

impl Claim {
    /// Takes the device from `virtio-pci`. `harmless` names a virtio driver that may lose it: one that has bound it without
    /// anybody's wish.
    pub fn new(found: &Found, harmless: Option<&str>) -> Result<Self, PciError> {
        let config = ConfigSpace::open(found)?;
        lock(found, &config)?;
        if let Some(user) = found.user().filter(|user| harmless != Some(user)) {
            return Err(PciError::Bound { device: found.address(), driver: user });
        }
        let driver = found.driver();
        match driver.as_deref() {
            None => {}
            Some(VIRTIO_PCI) => {
                let unbind = found.file("driver/unbind");
                at("take the device with", &unbind, fs::write(&unbind, found.address()))?;
            }
            Some(other) => {
                return Err(PciError::Bound { device: found.address(), driver: other.to_owned() });
            }
        }
        let claim = Self { found: found.clone(), config, driver };
        let enable = found.file("enable");
        at("enable the device with", &enable, fs::write(&enable, "1"))?;
        Ok(claim)
    }

    /// The device.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// What is to be done for it if this process cannot.
    pub fn farewell(&self) -> Farewell {
        let bind = self.bind().and_then(|path| {
            let path = CString::new(path.into_os_string().into_encoded_bytes()).ok()?;
            Some((path, CString::new(self.found.address()).ok()?))
        });
        Farewell { bind }
    }

    /// The file that gives the device back, if it was anybody's.
    fn bind(&self) -> Option<PathBuf> {
        self.driver.as_ref().map(|driver| Path::new("/sys/bus/pci/drivers").join(driver).join("bind"))
    }

    /// Its configuration space.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let give_back = || {
            fs::write(self.found.file("enable"), "0")?;
            self.bind().map_or(Ok(()), |bind| fs::write(bind, self.found.address()))
        };
        if let Err(error) = give_back() {
            tracing::warn!(device = self.found.address(), %error, "The device is not given back");
        }
    }
}

/// One process at a time: it ends with the process that holds it.
fn lock(found: &Found, config: &ConfigSpace) -> Result<(), PciError> {
    // SAFETY: a descriptor and an integer.
    let result = unsafe { libc::flock(config.file().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result < 0 { Err(PciError::InUse(found.address())) } else { Ok(()) }
}
