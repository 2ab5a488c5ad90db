//! How QEMU's vhost-user-blk talks to a disk: recorded from 7.2, 10.0 and 11.1; for the versions between, from what their
//! developers have said of the changes.

use std::os::fd::{AsFd, OwnedFd};

use vhost_user::frontend::driver::DriverQueue;
use vhost_user::message::{Inflight, Request, VERSION, VringAddr, VringState, features, protocol};
use virtqueue::RingFeatures;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::script::{Script, event, state};

/// What the firmware negotiates.
pub const OF_FIRMWARE: u64 = features::VERSION_1 | features::PROTOCOL_FEATURES;
/// What Linux negotiates.
pub const OF_LINUX: u64 = OF_FIRMWARE | RingFeatures::EVENT_IDX | RingFeatures::INDIRECT_DESC;

/// Queues of the device, whether a driver uses them or not.
const QUEUES: u32 = 2;
/// Protocol features of other devices, which these here have to offer because the test's device is all of them at once.
const OF_OTHER_DEVICES: u64 = protocol::CRYPTO_SESSION;

/// What a version does otherwise than the one before it.
#[derive(Clone, Copy)]
pub struct Qemu {
    /// It gets the bases of the rings before it writes status zero, not after.
    base_first: bool,
    /// It waits for each ring to be enabled or disabled, and knows DEVICE_STATE.
    enable_acked: bool,
    /// RESET_DEVICE with each reset of the machine or the driver, whether rings have run or not.
    resets: bool,
    /// It waits for each descriptor of a ring to be taken.
    events_acked: bool,
}

impl Qemu {
    pub const V7_2: Self =
        Self { base_first: false, enable_acked: false, resets: false, events_acked: false };
    pub const V8_1: Self = Self { base_first: true, ..Self::V7_2 };
    pub const V8_2: Self = Self { enable_acked: true, ..Self::V8_1 };
    /// 9.1 to 10.0.
    pub const V9_1: Self = Self { resets: true, ..Self::V8_2 };
    pub const V11_1: Self = Self { events_acked: true, ..Self::V9_1 };

    fn event(self, script: &mut Script<'_>, request: Request, index: u64, event: &EventFd) {
        if self.events_acked {
            script.demand(request, &index.to_ne_bytes(), &[super::fd(event)]);
        } else {
            script.tell_event(request, index, event);
        }
    }

    /// The first messages on every connection. Interrupts go to events that QEMU holds back, until a driver is there.
    pub fn connects(self, script: &mut Script<'_>) -> Vec<EventFd> {
        script.ask_word(Request::GetFeatures);
        let offered = script.ask_word(Request::GetProtocolFeatures) & !OF_OTHER_DEVICES;
        let known = if self.enable_acked { offered } else { offered & !protocol::DEVICE_STATE };
        script.tell_word(Request::SetProtocolFeatures, known);
        script.ask_word(Request::GetQueueNum);
        assert_eq!(script.ask_word(Request::GetMaxMemSlots), 509);
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        script.demand(Request::SetBackendReqFd, &[], &[theirs.as_fd()]);
        script.tell(Request::SetOwner, &[], &[]);
        script.ask_word(Request::GetFeatures);
        let held_back: Vec<_> = (0..QUEUES).map(|_| event()).collect();
        for (index, event) in (0..).zip(&held_back) {
            self.event(script, Request::SetVringCall, index, event);
            self.event(script, Request::SetVringErr, index, event);
        }
        held_back
    }

    /// On the first connection only: before any feature is set.
    pub fn reads_configuration(self, script: &mut Script<'_>) {
        let request = [&[0; 4], &57u32.to_ne_bytes()[..], &[0; 4], &[0; 57]].concat();
        assert_eq!(script.ask(Request::GetConfig, 0, &request).len(), 12 + 57);
    }

    /// The machine or the driver resets the device, which is stopped.
    pub fn resets(self, script: &mut Script<'_>, times: u32) {
        for _ in 0..times {
            if self.resets {
                script.tell(Request::ResetDevice, &[], &[]);
            }
        }
    }

    /// From FEATURES_OK to the point at which memory is added, if it is not there yet.
    pub fn negotiates(
        self,
        script: &mut Script<'_>,
        chosen: u64,
        calls: &[&EventFd],
        inflight: &mut Option<(Inflight, OwnedFd)>,
    ) {
        script.tell_word(Request::SetFeatures, chosen);
        assert_eq!(script.ask_word(Request::GetStatus), 0);
        script.tell_word(Request::SetStatus, 8);
        if inflight.is_none() {
            let body = [[0u8; 16].as_slice(), &2u16.to_ne_bytes(), &16u16.to_ne_bytes(), &[0; 4]].concat();
            script.frontend.send_raw(Request::GetInflightFd.into(), VERSION, &body, &[]).unwrap();
            let mut reply = script.frontend.receive_raw().unwrap();
            assert_eq!(reply.body.len(), 24, "QEMU compares the size");
            *inflight = Some((Inflight::read_from_bytes(&reply.body).unwrap(), reply.fds.pop().unwrap()));
        }
        let (description, memfd) = inflight.as_ref().unwrap();
        script.tell(Request::SetInflightFd, description.as_bytes(), &[memfd.as_fd()]);
        let unused = event();
        for index in 0..u64::from(QUEUES) {
            let call = calls.get(index as usize).copied().unwrap_or(&unused);
            self.event(script, Request::SetVringCall, index, call);
        }
        script.tell_word(Request::SetFeatures, chosen);
        assert_eq!(script.ask_word(Request::GetStatus), 8);
    }

    /// To DRIVER_OK. Rings without a queue are enabled, too.
    pub fn starts(self, script: &mut Script<'_>, queues: &[&DriverQueue], bases: &[u32]) {
        for ((index, queue), base) in (0..).zip(queues).zip(bases) {
            script.tell_state(Request::SetVringNum, index, queue.size.into());
            script.tell_state(Request::SetVringBase, index, *base);
            let addr = script.addr(index, &queue.addresses);
            script.tell(Request::SetVringAddr, addr.as_bytes(), &[]);
            self.event(script, Request::SetVringKick, index.into(), &queue.kick);
        }
        self.enables(script, 1);
        assert_eq!(script.ask_word(Request::GetStatus), 8);
        script.tell_word(Request::SetStatus, 15);
    }

    fn enables(self, script: &mut Script<'_>, enable: u32) {
        for index in 0..QUEUES {
            if self.enable_acked {
                script.demand(Request::SetVringEnable, state(index, enable).as_bytes(), &[]);
            } else {
                script.tell_state(Request::SetVringEnable, index, enable);
            }
        }
    }

    /// The machine pauses, resets or has migrated: the bases of the rings that have run.
    pub fn stops(self, script: &mut Script<'_>, rings: u32) -> Vec<u32> {
        if !self.base_first {
            script.tell_word(Request::SetStatus, 0);
        }
        self.enables(script, 0);
        let base = |index| {
            let reply = script.ask(Request::GetVringBase, 0, state(index, 0).as_bytes());
            VringState::read_from_bytes(&reply).unwrap().num.get()
        };
        let bases = (0..rings).map(base).collect();
        if self.base_first {
            script.tell_word(Request::SetStatus, 0);
        }
        bases
    }

    /// A migration begins, with the rings running: the log, LOG_ALL, and each ring's address again with its own log flag.
    pub fn logs(
        self,
        script: &mut Script<'_>,
        chosen: u64,
        queues: &[&DriverQueue],
        log: &OwnedFd,
        size: u64,
    ) {
        let body = [size.to_ne_bytes(), [0; 8]].concat();
        script.frontend.send_raw(Request::SetLogBase.into(), VERSION, &body, &[log.as_fd()]).unwrap();
        let reply = script.frontend.receive_raw().unwrap();
        assert_eq!(reply.header.request.get(), u32::from(Request::SetLogBase));
        script.demand(Request::SetFeatures, &(chosen | features::LOG_ALL).to_ne_bytes(), &[]);
        assert_eq!(script.ask_word(Request::GetStatus), 15);
        for (index, queue) in (0..).zip(queues) {
            let mut addr = script.addr(index, &queue.addresses);
            addr.flags = VringAddr::LOG.into();
            script.demand(Request::SetVringAddr, addr.as_bytes(), &[]);
        }
    }
}
