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
        let socket = |path: &Path| {
            // Never again after the first time: QEMU would not set up the first kind of device a second time, and looks for
            // the second kind before a connection that may be repeated is there.
            ["-chardev".to_owned(), format!("socket,id={id}-socket,path={}", path.display())]
        };
        let device = match &self.0 {
            // Without MSI-X: QEMU 7.2 dereferences null when an emulated processor unmasks a vector of a vhost-user device.
            Door::Builtin | Door::Cryptodev(_) => {
                format!("virtio-crypto-pci,id={id},cryptodev={id}-backend,vectors=0")
            }
            // virtio 1.3 §5.9: device 20, the control queue after the data queues, 56 bytes of configuration.
            Door::Whole(_) => format!(
                "vhost-user-test-device-pci,id={id},chardev={id}-socket,virtio-id=20,num_vqs={},vq_size=1024,config_size=56",
                QUEUES + 1
            ),
        };
        let mut args = match &self.0 {
            Door::Builtin => Vec::new(),
            Door::Cryptodev(path) | Door::Whole(path) => socket(path).to_vec(),
        };
        match &self.0 {
            Door::Builtin => {
                args.extend(["-object".into(), format!("cryptodev-backend-builtin,id={id}-backend")]);
            }
            Door::Cryptodev(_) => args.extend([
                "-object".into(),
                format!("cryptodev-vhost-user,id={id}-backend,chardev={id}-socket"),
            ]),
            Door::Whole(_) => {}
        }
        args.extend(["-device".into(), device]);
        args
    }
}
