//! The arguments with which QEMU attaches a port, shown to someone who starts the daemon in a terminal.

use crate::options::PortOptions;
use daemon::EndpointSpec;
use daemon::cli::{qemu_path, shell_word};
use std::fmt::Write;

/// What to do next; nothing if no port has a socket with a path.
pub fn first_steps(ports: &[(&PortOptions, &EndpointSpec)]) -> String {
    let attached: Vec<_> = ports
        .iter()
        .enumerate()
        .filter_map(|(index, (port, endpoint))| arguments(index, port, endpoint))
        .collect();
    let mut text = String::new();
    if attached.is_empty() {
        return text;
    }
    text.push_str(match attached.len() {
        1 => {
            "Start the guest with these arguments besides its own (share=on: the daemon works in the guest's memory):\n"
        }
        _ => {
            "Start each guest with the first line and one of the others besides its own arguments (share=on: the daemon \
             works in the guest's memory):\n"
        }
    });
    text.push_str(
        "  -m 2G -object memory-backend-memfd,id=mem,size=2G,share=on -machine q35,accel=kvm:tcg,memory-backend=mem",
    );
    for each in attached {
        // Writing to a string does not fail.
        let _ = write!(text, " \\\n  {each}");
    }
    text.push('\n');
    text
}

fn arguments(index: usize, port: &PortOptions, endpoint: &EndpointSpec) -> Option<String> {
    let (path, mode) = match (&endpoint.socket_path, &endpoint.connect) {
        (Some(path), _) => (path, "reconnect=1"),
        (None, Some(path)) => (path, "server=on,wait=off"),
        (None, None) => return None,
    };
    let chardev = shell_word(&format!("socket,id=chr{index},path={}", qemu_path(path)));
    let mac = port.mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
    let mtu = port.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
    Some(format!(
        "-chardev {chardev},{mode} -netdev vhost-user,id=net{index},chardev=chr{index} \
         -device virtio-net-pci,netdev=net{index}{mac}{mtu}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(endpoint: &EndpointSpec) -> String {
        let mac = "52:54:00:00:00:01".parse().ok();
        let port = PortOptions { mac, mtu: Some(9000), ..PortOptions::new("p") };
        first_steps(&[(&port, endpoint)])
    }

    #[test]
    fn a_socket_becomes_a_chardev_a_netdev_and_a_device() {
        let endpoint = EndpointSpec { socket_path: Some("/run/a,b c".into()), ..EndpointSpec::default() };
        let text = steps(&endpoint);
        assert!(text.contains("share=on") && text.contains("memory-backend=mem"), "{text}");
        assert!(text.contains("-chardev 'socket,id=chr0,path=/run/a,,b c',reconnect=1 "), "{text}");
        assert!(text.contains("-netdev vhost-user,id=net0,chardev=chr0 "), "{text}");
        assert!(text.contains("virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,host_mtu=9000"), "{text}");
    }

    #[test]
    fn a_frontend_that_is_connected_to_must_listen() {
        let endpoint = EndpointSpec { connect: Some("/run/a".into()), ..EndpointSpec::default() };
        assert!(steps(&endpoint).contains("path=/run/a,server=on,wait=off"));
    }

    #[test]
    fn an_inherited_socket_needs_no_words() {
        assert_eq!(steps(&EndpointSpec { fd: Some(3), ..EndpointSpec::default() }), "");
    }
}
