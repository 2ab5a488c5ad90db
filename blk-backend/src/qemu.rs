//! The arguments with which QEMU attaches a disk, shown to someone who starts the daemon in a terminal.

use crate::options::DiskOptions;
use crate::spec::DEFAULT_QUEUES;
use daemon::EndpointSpec;
use daemon::cli::{qemu_path, shell_word};
use std::fmt::Write;

/// What to do next; nothing if no disk has a socket with a path.
pub fn first_steps(disks: &[(&DiskOptions, &EndpointSpec)]) -> String {
    let attached: Vec<_> = disks
        .iter()
        .enumerate()
        .filter_map(|(index, (disk, endpoint))| arguments(index, disk, endpoint))
        .collect();
    let mut text = String::new();
    if attached.is_empty() {
        return text;
    }
    text.push_str(
        "Start the guest with these arguments besides its own (share=on: the daemon works in the guest's memory):\n  \
         -m 2G -object memory-backend-memfd,id=mem,size=2G,share=on -machine q35,accel=kvm:tcg,memory-backend=mem",
    );
    for each in attached {
        // Writing to a string does not fail.
        let _ = write!(text, " \\\n  {each}");
    }
    text.push('\n');
    text
}

fn arguments(index: usize, disk: &DiskOptions, endpoint: &EndpointSpec) -> Option<String> {
    let (path, mode) = match (&endpoint.socket_path, &endpoint.connect) {
        (Some(path), _) => (path, "reconnect=1"),
        (None, Some(path)) => (path, "server=on,wait=off"),
        (None, None) => return None,
    };
    let chardev = shell_word(&format!("socket,id=disk{index},path={}", qemu_path(path)));
    // QEMU asks for a queue a processor unless it is told, and refuses a disk that has fewer.
    let queues = match disk.num_queues {
        few if few < DEFAULT_QUEUES => format!(",num-queues={few}"),
        _ => String::new(),
    };
    Some(format!("-chardev {chardev},{mode} -device vhost-user-blk-pci,chardev=disk{index}{queues}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Source;

    fn steps(endpoint: &EndpointSpec) -> String {
        first_steps(&[(&DiskOptions::new("d", Source::Null(512)), endpoint)])
    }

    #[test]
    fn a_socket_becomes_a_chardev_and_a_device() {
        let endpoint = EndpointSpec { socket_path: Some("/run/a,b c".into()), ..EndpointSpec::default() };
        let text = steps(&endpoint);
        assert!(text.contains("share=on") && text.contains("memory-backend=mem"), "{text}");
        assert!(text.contains("-chardev 'socket,id=disk0,path=/run/a,,b c',reconnect=1 "), "{text}");
        assert!(text.contains("vhost-user-blk-pci,chardev=disk0,num-queues=1"), "{text}");
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
