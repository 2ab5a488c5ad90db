//! The arguments with which QEMU attaches a port, shown to someone who starts the daemon in a terminal.

use crate::options::PortOptions;
use daemon::EndpointSpec;
use daemon::device::qemu::{self, Guests, Reconnect, chardev};

/// What to do next; nothing if no port has a socket with a path.
pub fn first_steps(ports: &[(&PortOptions, &EndpointSpec)]) -> String {
    let each = ports.iter().enumerate().map(|(index, (port, endpoint))| arguments(index, port, endpoint));
    qemu::first_steps(Guests::Each, each)
}

fn arguments(index: usize, port: &PortOptions, endpoint: &EndpointSpec) -> Option<String> {
    let chardev = chardev(&format!("chr{index}"), endpoint, Reconnect::EverySecond)?;
    let mac = port.mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
    let mtu = port.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
    Some(format!(
        "{chardev} -netdev vhost-user,id=net{index},chardev=chr{index} \
         -device virtio-net-pci,netdev=net{index}{mac}{mtu}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_becomes_a_chardev_a_netdev_and_a_device() {
        let endpoint = EndpointSpec { socket_path: Some("/run/a,b c".into()), ..EndpointSpec::default() };
        let mac = "52:54:00:00:00:01".parse().ok();
        let port = PortOptions { mac, mtu: Some(9000), ..PortOptions::new("p") };
        let text = first_steps(&[(&port, &endpoint)]);
        assert!(text.contains("share=on") && text.contains("memory-backend=mem"), "{text}");
        assert!(text.contains("-chardev 'socket,id=chr0,path=/run/a,,b c',reconnect=1 "), "{text}");
        assert!(text.contains("-netdev vhost-user,id=net0,chardev=chr0 "), "{text}");
        assert!(text.contains("virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,host_mtu=9000"), "{text}");
    }
}
