//! virtio-crypto devices of a guest.

use std::path::{Path, PathBuf};

/// Who serves the device.
#[derive(Clone)]
enum Door {
    /// QEMU itself, in its main loop.
    Builtin,
    /// QEMU keeps the control queue; the data queue goes to a socket.
    Cryptodev(PathBuf),
    /// A socket serves everything; QEMU only carries it.
    Whole(PathBuf),
}

/// A virtio-crypto device.
#[derive(Clone)]
pub struct Crypto(Door);

/// Data queues of a whole device: what the daemon is told must be what QEMU is told.
pub const QUEUES: u16 = 2;

impl Crypto {
    /// QEMU's `cryptodev-backend-builtin`: a device nobody here wrote.
    pub fn builtin() -> Self {
        Self(Door::Builtin)
    }

    /// QEMU's `cryptodev-vhost-user`: sessions are messages, requests are on one queue.
    pub fn cryptodev(socket: &Path) -> Self {
        Self(Door::Cryptodev(socket.to_owned()))
    }

    /// QEMU's `vhost-user-test-device-pci`. Needs the newest QEMU.
    pub fn whole(socket: &Path) -> Self {
        Self(Door::Whole(socket.to_owned()))
    }

    /// Whether Debian's release has no QEMU that can do it.
    pub fn needs_newest_qemu(&self) -> bool {
        matches!(self.0, Door::Whole(_))
    }

    /// QEMU's options.
    pub fn args(&self, id: &str) -> Vec<String> {
        // Connected once and for all: QEMU would not set up the first kind of device again, and looks for the second kind
        // before a connection that may be repeated is there.
        let socket = |path: &Path| format!("socket,id={id}-socket,path={}", path.display());
        // Without MSI-X: QEMU 7.2 dereferences null when an emulated processor unmasks a vector of a vhost-user device.
        let front = format!("virtio-crypto-pci,id={id},cryptodev={id}-backend,vectors=0");
        let options = match &self.0 {
            Door::Builtin => {
                vec![("-object", format!("cryptodev-backend-builtin,id={id}-backend")), ("-device", front)]
            }
            Door::Cryptodev(path) => vec![
                ("-chardev", socket(path)),
                ("-object", format!("cryptodev-vhost-user,id={id}-backend,chardev={id}-socket")),
                ("-device", front),
            ],
            Door::Whole(path) => {
                let queues = QUEUES + 1;
                // virtio 1.3 §5.9: device 20, the control queue after the data queues, 56 bytes of configuration.
                let is = format!("virtio-id=20,num_vqs={queues},vq_size=1024,config_size=56");
                let device = format!("vhost-user-test-device-pci,id={id},chardev={id}-socket,{is}");
                vec![("-chardev", socket(path)), ("-device", device)]
            }
        };
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}
