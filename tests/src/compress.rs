//! Compression devices of a guest, driven by `vhostd-guest` in it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::{Guest, Qemu};
use crate::process::tail;

/// Data queues, whichever way the device is carried.
pub const QUEUES: u16 = 3;

/// An emulated processor compresses slowly.
const PATIENCE: Duration = Duration::from_secs(120);

/// How QEMU carries the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// `vhost-user-test-device-pci`: the device as it is. Only in new QEMUs.
    Whole,
    /// `vhost-user-fs-pci`: a file system whose tag says that it is none.
    Carrier,
}

impl Door {
    /// The QEMU that has it.
    pub fn qemu(self) -> Qemu {
        match self {
            Self::Whole => Qemu::Newest,
            Self::Carrier => Qemu::Release,
        }
    }

    /// QEMU's options.
    pub fn options(self, socket: &Path) -> [String; 4] {
        let device = match self {
            Self::Whole => {
                format!(
                    "vhost-user-test-device-pci,chardev=vcomp,virtio-id=38,num_vqs={QUEUES},vq_size=256,config_size=64"
                )
            }
            // Besides the request queues there is always one for notifications of high priority.
            Self::Carrier => {
                format!(
                    "vhost-user-fs-pci,chardev=vcomp,tag=vcomp0,num-request-queues={},queue-size=256",
                    QUEUES - 1
                )
            }
        };
        let socket = format!("socket,id=vcomp,path={}", socket.display());
        ["-chardev".into(), socket, "-device".into(), device]
    }

    /// A guest with the device on this socket.
    ///
    /// # Errors
    /// As for booting any guest.
    pub fn boot(self, socket: &Path) -> Result<Guest> {
        let options = self.options(socket);
        Guest::builder().qemu(self.qemu()).options(&options.each_ref().map(String::as_str)).boot()
    }
}

/// Runs `vhostd-guest` in the guest, which must succeed; returns what it printed.
///
/// # Errors
/// When it fails.
pub fn tool(guest: &mut Guest, args: &str) -> Result<String> {
    guest.sh_for(&format!("vhostd-guest {args}"), PATIENCE)
}

/// A file of the guest with `mib` MiB of programs, which compress as programs do.
///
/// # Errors
/// When the guest has none.
pub fn corpus(guest: &mut Guest, path: &str, mib: u32) -> Result<()> {
    let programs = "for _ in 1 2 3 4 5 6; do cat /bin/busybox /bin/vhostd-guest; done 2>/dev/null";
    let fill = format!("{programs} | head -c {} >{path}", mib << 20);
    guest.sh_for(&fill, PATIENCE)?;
    Ok(())
}

/// The device is in nobody's hands but `virtio-pci`'s.
///
/// # Errors
/// When it is not.
pub fn is_given_back(guest: &mut Guest) -> Result<()> {
    let drivers = "for d in /sys/bus/pci/devices/*; do [ \"$(cat $d/vendor)\" = 0x1af4 ] && readlink $d/driver; done; true";
    let drivers = guest.sh(drivers)?;
    let lines = drivers.lines().filter(|line| line.ends_with("/virtio-pci")).count();
    ensure!(lines == 1, "the device has no driver after the tool has ended: {}", tail(&drivers, 5));
    Ok(())
}
