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
    Whole { socket: PathBuf, queues: u16 },
}

/// A virtio-crypto device.
#[derive(Clone)]
pub struct Crypto {
    door: Door,
    reconnects: bool,
}

impl Crypto {
    /// QEMU's `cryptodev-backend-builtin`: a device nobody here wrote.
    pub fn builtin() -> Self {
        Self::new(Door::Builtin)
    }

    /// QEMU's `cryptodev-vhost-user`: sessions are messages, requests are on one queue.
    pub fn cryptodev(socket: &Path) -> Self {
        Self::new(Door::Cryptodev(socket.to_owned()))
    }

    /// QEMU's `vhost-user-test-device-pci`, with as many data queues. Needs the newest QEMU.
    pub fn whole(socket: &Path, queues: u16) -> Self {
        Self::new(Door::Whole { socket: socket.to_owned(), queues })
    }

    fn new(door: Door) -> Self {
        Self { door, reconnects: false }
    }

    /// QEMU connects again when the socket is closed. Of use to a whole device alone: the other kind is not set up again.
    pub fn reconnecting(mut self) -> Self {
        self.reconnects = true;
        self
    }

    /// Whether Debian's release has no QEMU that can do it.
    pub fn needs_newest_qemu(&self) -> bool {
        matches!(self.door, Door::Whole { .. })
    }

    /// QEMU's options.
    pub fn args(&self, id: &str) -> Vec<String> {
        let socket = |path: &Path| {
            let again = if self.reconnects { ",reconnect-ms=200" } else { "" };
            ["-chardev".to_owned(), format!("socket,id={id}-socket,path={}{again}", path.display())]
        };
        // Without MSI-X: QEMU 7.2 dereferences null when an emulated processor unmasks a vector of a vhost-user device.
        let backed = format!("virtio-crypto-pci,id={id},cryptodev={id}-backend,vectors=0");
        match &self.door {
            Door::Builtin => {
                let backend = format!("cryptodev-backend-builtin,id={id}-backend");
                vec!["-object".into(), backend, "-device".into(), backed]
            }
            Door::Cryptodev(path) => {
                let backend = format!("cryptodev-vhost-user,id={id}-backend,chardev={id}-socket");
                let mut args = socket(path).to_vec();
                args.extend(["-object".into(), backend, "-device".into(), backed]);
                args
            }
            Door::Whole { socket: path, queues } => {
                let mut args = socket(path).to_vec();
                // virtio 1.3 §5.9: device 20, the control queue after the data queues, 56 bytes of configuration.
                args.extend([
                    "-device".into(),
                    format!(
                        "vhost-user-test-device-pci,id={id},chardev={id}-socket,virtio-id=20,num_vqs={},vq_size=1024,\
                         config_size=56",
                        queues + 1
                    ),
                ]);
                args
            }
        }
    }
}
