//! The arguments with which QEMU attaches a device, shown to someone who starts the daemon in a terminal.

use crate::options::DeviceOptions;
use compress_protocol::DEVICE_ID;
use daemon::EndpointSpec;
use daemon::device::qemu::{self, Guests, Reconnect, chardev};

/// What to do next; nothing if no device has a socket with a path.
pub fn first_steps<'a>(
    devices: impl Iterator<Item = (&'a DeviceOptions, &'a EndpointSpec)> + Clone,
) -> String {
    let arguments = |door| {
        let each = devices.clone().enumerate();
        each.map(move |(index, (device, endpoint))| arguments(index, device, endpoint, door))
    };
    let mut text = qemu::first_steps(Guests::Each, arguments(Door::Whole));
    let Some(carried) = arguments(Door::FileSystem).flatten().next() else { return text };
    text.push_str(
        "This takes QEMU 10.2 or newer. QEMU 7.2 to 10.1 can carry the same device inside of its vhost-user-fs device:\n  ",
    );
    text.push_str(&carried);
    text.push_str("\nIn the guest: vhostd-guest info, vhostd-guest compress FILE.\n");
    text
}

/// Which of QEMU's devices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// The generic vhost-user device as a compression device.
    Whole,
    /// A file system that is none: any QEMU.
    FileSystem,
}

fn arguments(index: usize, device: &DeviceOptions, endpoint: &EndpointSpec, door: Door) -> Option<String> {
    let chardev = chardev(&format!("chr{index}"), endpoint, Reconnect::Never)?;
    let DeviceOptions { queues, queue_size, .. } = device;
    Some(match door {
        Door::Whole => format!(
            "{chardev} -device vhost-user-test-device-pci,chardev=chr{index},virtio-id={DEVICE_ID},num_vqs={queues},\
             vq_size={queue_size},config_size=64"
        ),
        // Its queue for urgent requests is one of them, and it insists on another one.
        Door::FileSystem if *queues < 2 => return None,
        Door::FileSystem => format!(
            "{chardev} -device vhost-user-fs-pci,chardev=chr{index},tag=vcomp{index},num-request-queues={},\
             queue-size={queue_size}",
            queues - 1
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(device: &DeviceOptions, endpoint: &EndpointSpec) -> String {
        first_steps(std::iter::once((device, endpoint)))
    }

    fn listens() -> EndpointSpec {
        EndpointSpec { socket_path: Some("/run/a,b c".into()), ..EndpointSpec::default() }
    }

    #[test]
    fn a_new_qemu_has_the_whole_device() {
        let device = DeviceOptions { queues: 4, queue_size: 128, ..DeviceOptions::new("c") };
        let text = steps(&device, &listens());
        assert!(text.contains("share=on") && text.contains("memory-backend=mem"), "{text}");
        let door = "-chardev 'socket,id=chr0,path=/run/a,,b c' -device vhost-user-test-device-pci,chardev=chr0,\
            virtio-id=38,num_vqs=4,vq_size=128,config_size=64";
        assert!(text.contains(door), "{text}");
    }

    #[test]
    fn an_older_qemu_carries_it_with_a_queue_less_to_ask_for() {
        let device = DeviceOptions { queues: 4, ..DeviceOptions::new("c") };
        let carrier = "-device vhost-user-fs-pci,chardev=chr0,tag=vcomp0,num-request-queues=3,queue-size=256";
        let text = steps(&device, &listens());
        assert!(text.contains(carrier), "{text}");
        let text = steps(&DeviceOptions::new("c"), &listens());
        assert!(text.contains("num_vqs=2") && text.contains("num-request-queues=1"), "{text}");
        let alone = steps(&DeviceOptions { queues: 1, ..DeviceOptions::new("c") }, &listens());
        assert!(alone.contains("num_vqs=1") && !alone.contains("vhost-user-fs"), "{alone}");
    }

    #[test]
    fn an_inherited_socket_needs_no_words() {
        let inherited = EndpointSpec { fd: Some(3), ..EndpointSpec::default() };
        assert_eq!(steps(&DeviceOptions::new("c"), &inherited), "");
    }
}
