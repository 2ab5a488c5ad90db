//! The arguments with which QEMU attaches a disk, shown to someone who starts the daemon in a terminal.

use crate::options::DiskOptions;
use crate::spec::DEFAULT_QUEUES;
use daemon::EndpointSpec;
use daemon::device::qemu::{self, Guests, Reconnect, chardev};

/// What to do next; nothing if no disk has a socket with a path.
pub fn first_steps(disks: &[(&DiskOptions, &EndpointSpec)]) -> String {
    let each = disks.iter().enumerate().map(|(index, (disk, endpoint))| arguments(index, disk, endpoint));
    qemu::first_steps(Guests::One, each)
}

fn arguments(index: usize, disk: &DiskOptions, endpoint: &EndpointSpec) -> Option<String> {
    let chardev = chardev(&format!("disk{index}"), endpoint, Reconnect::EverySecond)?;
    // QEMU asks for a queue a processor unless it is told, and refuses a disk that has fewer.
    let queues = match disk.num_queues {
        few if few < DEFAULT_QUEUES => format!(",num-queues={few}"),
        _ => String::new(),
    };
    Some(format!("{chardev} -device vhost-user-blk-pci,chardev=disk{index}{queues}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Source;

    #[test]
    fn a_socket_becomes_a_chardev_and_a_device() {
        let endpoint = EndpointSpec { socket_path: Some("/run/a,b c".into()), ..EndpointSpec::default() };
        let text = first_steps(&[(&DiskOptions::new("d", Source::Null(512)), &endpoint)]);
        assert!(text.contains("share=on") && text.contains("memory-backend=mem"), "{text}");
        assert!(text.contains("-chardev 'socket,id=disk0,path=/run/a,,b c',reconnect=1 "), "{text}");
        assert!(text.contains("vhost-user-blk-pci,chardev=disk0,num-queues=1"), "{text}");
    }
}
