//! A vhost-user network device of a QEMU guest.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Interrupts by a line instead of messages. Where the kernel does not help with interrupts, QEMU 7.2 ends with a
/// segmentation fault when the guest masks a message of a vhost-user network device (kvm_virtio_pci_irqfd_release without
/// any irqfd; newer versions do not), which Linux does when it moves an interrupt to another processor.
const VECTORS: u16 = 0;

/// The device and the netdev behind it. It appears as `eth0`, `eth1`, ... in order.
#[derive(Clone)]
pub struct Nic {
    socket: PathBuf,
    mac: String,
    queues: u16,
    packed: bool,
    mtu: Option<u16>,
    listens: bool,
}

impl Nic {
    /// One pair of split rings, with the address `52:54:00:00:00:<host>`, backed by whoever listens at `socket`.
    pub fn new(socket: &Path, host: u8) -> Self {
        let mac = format!("52:54:00:00:00:{host:02x}");
        Self { socket: socket.to_owned(), mac, queues: 1, packed: false, mtu: None, listens: false }
    }

    /// Number of queue pairs.
    pub fn queues(mut self, pairs: u16) -> Self {
        self.queues = pairs;
        self
    }

    /// Packed rings instead of split ones.
    pub fn packed(mut self, packed: bool) -> Self {
        self.packed = packed;
        self
    }

    /// The MTU QEMU tells the guest.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// QEMU listens and the backend connects.
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Its MAC address.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// Its queue pairs.
    pub fn pairs(&self) -> u16 {
        self.queues
    }

    /// Whether it has packed rings.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// QEMU's options for it.
    pub fn args(&self, id: &str) -> Vec<String> {
        let role = if self.listens { "server=on,wait=off" } else { "reconnect=1" };
        let mut device = format!(
            "virtio-net-pci,id={id},netdev={id}-net,mac={},packed={},mq={},vectors={VECTORS},romfile=",
            self.mac,
            on_off(self.packed),
            on_off(self.queues > 1)
        );
        if let Some(mtu) = self.mtu {
            device.push_str(&format!(",host_mtu={mtu}"));
        }
        vec![
            "-chardev".into(),
            format!("socket,id={id}-socket,path={},{role}", self.socket.display()),
            "-netdev".into(),
            format!("vhost-user,id={id}-net,chardev={id}-socket,queues={}", self.queues),
            "-device".into(),
            device,
        ]
    }

    /// The same for a running QEMU: arguments of `chardev-add`, `netdev_add` and `device_add`.
    pub fn plug_arguments(&self, id: &str, bus: &str) -> [Value; 3] {
        let address = json!({"type": "unix", "data": {"path": self.socket}});
        let backend = json!({"type": "socket", "data": {"addr": address, "server": false, "reconnect": 1}});
        let (socket, net) = (format!("{id}-socket"), format!("{id}-net"));
        [
            json!({"id": socket, "backend": backend}),
            json!({"type": "vhost-user", "id": net, "chardev": socket, "queues": self.queues}),
            json!({
                "driver": "virtio-net-pci", "id": id, "bus": bus, "netdev": net, "mac": self.mac, "packed": self.packed,
                "mq": self.queues > 1, "vectors": VECTORS, "romfile": "",
            }),
        ]
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}
