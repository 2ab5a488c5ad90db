//! The arguments with which QEMU attaches a device, shown to someone who starts the daemon in a terminal.
//!
//! None of them reconnects: QEMU cannot start this device a second time, so that `reconnect=1` would only hide that it is gone.

use crate::options::DeviceOptions;
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
    let mut text = qemu::first_steps(Guests::Each, arguments(Door::Cryptodev));
    let Some(whole) = arguments(Door::Whole).flatten().next() else { return text };
    text.push_str(
        "Start QEMU after this daemon, and again after it: QEMU does not come back to this kind of device. An emulated guest \
         (without KVM) needs vectors=0 in place of vectors=3.\nQEMU 10.2 and newer can have the whole device, with all \
         algorithms, queues and RSA:\n  ",
    );
    text.push_str(&whole);
    text.push('\n');
    text
}

/// Which of QEMU's devices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// virtio-crypto with a vhost-user backend: any QEMU, one data queue, AES-CBC.
    Cryptodev,
    /// The generic vhost-user device as virtio-crypto.
    Whole,
}

fn arguments(index: usize, device: &DeviceOptions, endpoint: &EndpointSpec, door: Door) -> Option<String> {
    let chardev = chardev(&format!("chr{index}"), endpoint, Reconnect::Never)?;
    let DeviceOptions { queues, queue_size, .. } = device;
    Some(match door {
        Door::Cryptodev => format!(
            "{chardev} -object cryptodev-vhost-user,id=cryptodev{index},chardev=chr{index} \
             -device virtio-crypto-pci,cryptodev=cryptodev{index},vectors=3"
        ),
        Door::Whole => format!(
            "{chardev} -device vhost-user-test-device-pci,chardev=chr{index},virtio-id=20,num_vqs={},vq_size={queue_size},\
             config_size=56",
            u32::from(*queues) + 1
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
    fn any_qemu_has_a_cryptodev_that_does_not_reconnect() {
        let text = steps(&DeviceOptions::new("c"), &listens());
        assert!(text.contains("share=on") && text.contains("memory-backend=mem"), "{text}");
        let door = "-chardev 'socket,id=chr0,path=/run/a,,b c' -object cryptodev-vhost-user,id=cryptodev0,chardev=chr0 \
            -device virtio-crypto-pci,cryptodev=cryptodev0,vectors=3";
        assert!(text.contains(door), "{text}");
        assert!(text.contains("vectors=0") && !text.contains("reconnect="), "{text}");
    }

    #[test]
    fn a_new_qemu_has_a_queue_more_than_there_are_data_queues() {
        let device = DeviceOptions { queues: 4, queue_size: 256, ..DeviceOptions::new("c") };
        let text = steps(&device, &listens());
        assert!(text.contains("virtio-id=20,num_vqs=5,vq_size=256,config_size=56"), "{text}");
    }

    #[test]
    fn an_inherited_socket_needs_no_words() {
        let inherited = EndpointSpec { fd: Some(3), ..EndpointSpec::default() };
        assert_eq!(steps(&DeviceOptions::new("c"), &inherited), "");
    }
}
