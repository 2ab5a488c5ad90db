//! What a frontend has set up: everything that a new worker has to be told.
//!
//! The record changes only when the worker has accepted a message, in the way in which the session of a back-end
//! (`vhost_user`'s) changes its own state. It is dropped with the frontend's connection.

mod memory;
mod ring;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use vhost_user::connection::Message;
use vhost_user::message::{
    ConfigHead, INDEX_MASK, NOFD, Request, VringAddr, VringState, Word, features, protocol,
};

pub(crate) use self::memory::Regions;
pub(crate) use self::ring::{Event, Ring};

/// Virtio feature bits whose change stops no ring.
const CHANGEABLE: u64 = features::LOG_ALL | features::PROTOCOL_FEATURES;
/// Most writes to the configuration space that are remembered.
const CONFIG_WRITES: usize = 64;

/// The state of one frontend's connection.
#[derive(Default)]
pub(crate) struct Record {
    /// `SET_FEATURES`.
    pub features: Option<u64>,
    /// `SET_PROTOCOL_FEATURES`, as the frontend sent it.
    pub protocol: Option<u64>,
    /// `SET_OWNER`.
    pub owner: bool,
    /// `SET_STATUS`.
    pub status: Option<u64>,
    /// `NET_SET_MTU`.
    pub mtu: Option<u64>,
    /// `GPU_SET_SOCKET`.
    pub gpu: Option<OwnedFd>,
    /// Guest memory.
    pub memory: Regions,
    /// `SET_LOG_BASE`.
    pub log: Option<(Vec<u8>, OwnedFd)>,
    /// `SET_LOG_FD`.
    pub log_fd: Option<OwnedFd>,
    /// `SET_CONFIG`: the last write to each place, oldest first.
    pub config: Vec<Vec<u8>>,
    /// `SET_INFLIGHT_FD`: the frontend keeps a region by itself.
    pub inflight: Option<(Vec<u8>, File)>,
    /// The rings that were touched.
    pub rings: BTreeMap<u32, Ring>,
}

impl Record {
    /// The frontend has negotiated this protocol feature.
    pub fn has_protocol(&self, bit: u64) -> bool {
        self.protocol.unwrap_or(0) & bit != 0
    }

    /// The frontend understands acknowledgements.
    pub fn acknowledges(&self) -> bool {
        self.has_protocol(protocol::REPLY_ACK)
    }

    /// The rings are packed ones.
    pub fn is_packed(&self) -> bool {
        self.features.unwrap_or(0) & features::RING_PACKED != 0
    }

    /// The worker has accepted a message that has no reply of its own.
    pub fn accepted(&mut self, request: Request, message: Message) {
        use Request::*;
        match request {
            SetFeatures => self.set_features(word(&message)),
            SetProtocolFeatures => self.protocol = Some(word(&message)),
            SetOwner => self.owner = true,
            ResetOwner => self.rings.values_mut().for_each(|ring| ring.enabled = Some(false)),
            ResetDevice => self.reset(),
            SetStatus => self.set_status(word(&message)),
            NetSetMtu => self.mtu = Some(word(&message)),
            GpuSetSocket => self.gpu = message.fds.into_iter().next(),
            SetConfig => self.set_config(message.body),
            SetLogFd => self.log_fd = message.fds.into_iter().next(),
            SetMemTable => self.memory.set(&message.body, message.fds),
            AddMemReg => self.memory.add(&message.body, message.fds),
            RemMemReg => self.memory.remove(&message.body),
            SetInflightFd => {
                self.inflight = message.fds.into_iter().next().map(|fd| (message.body, fd.into()));
            }
            SetVringNum => self.ring_state(&message, Ring::set_num),
            SetVringBase => self.ring_state(&message, Ring::set_base),
            SetVringEnable => self.ring_state(&message, |ring, num| ring.enabled = Some(num != 0)),
            SetVringEndian => self.ring_state(&message, |ring, num| ring.endian = Some(num)),
            VringKick => self.ring_state(&message, |ring, _| ring.kick_in_band()),
            SetVringAddr => {
                if let Some(addr) = message.payload::<VringAddr>() {
                    self.ring(addr.index.get()).set_addr(addr);
                }
            }
            SetVringKick => self.ring_event(message, Ring::set_kick),
            SetVringCall => self.ring_event(message, |ring, call| ring.call = Some(call)),
            SetVringErr => self.ring_event(message, |ring, err| ring.err = Some(err)),
            // Nothing that lasts, or nothing that is answered so.
            _ => {}
        }
    }

    /// The worker has answered a message.
    pub fn answered(&mut self, request: Request, message: Message, reply: &Message) {
        match request {
            Request::GetVringBase => {
                if let Some(state) = reply.payload::<VringState>() {
                    self.ring(state.index.get()).stop(Some(state.num.get()));
                }
            }
            Request::SetLogBase => {
                self.log = message.fds.into_iter().next().map(|fd| (message.body, fd));
            }
            _ => {}
        }
    }

    fn ring(&mut self, index: u32) -> &mut Ring {
        self.rings.entry(index).or_default()
    }

    fn ring_state(&mut self, message: &Message, change: impl FnOnce(&mut Ring, u32)) {
        if let Some(state) = message.payload::<VringState>() {
            change(self.ring(state.index.get()), state.num.get());
        }
    }

    fn ring_event(&mut self, message: Message, change: impl FnOnce(&mut Ring, Event)) {
        let word = word(&message);
        let event = if word & NOFD == 0 { message.fds.into_iter().next() } else { None };
        change(self.ring((word & INDEX_MASK) as u32), event.map_or(Event::None, Event::Fd));
    }

    fn set_features(&mut self, features: u64) {
        let before = self.features.replace(features).unwrap_or(0);
        if (before ^ features) & !CHANGEABLE != 0 {
            self.stop_rings();
        }
    }

    fn set_status(&mut self, status: u64) {
        self.status = Some(status);
        if status == 0 {
            self.stop_rings();
        }
    }

    fn reset(&mut self) {
        self.stop_rings();
        self.rings.values_mut().for_each(|ring| ring.enabled = Some(false));
        self.status = None;
        self.config.clear();
    }

    fn stop_rings(&mut self) {
        self.rings.values_mut().filter(|ring| ring.started).for_each(|ring| ring.stop(None));
    }

    fn set_config(&mut self, body: Vec<u8>) {
        const PLACE: usize = size_of::<ConfigHead>() - size_of::<u32>();
        // Offset and size; the flags that follow say who wrote.
        self.config.retain(|before| before.get(..PLACE) != body.get(..PLACE));
        if self.config.len() == CONFIG_WRITES {
            self.config.remove(0);
        }
        self.config.push(body);
    }
}

/// The payload as a number; 0 when it is something else, which the worker would not have accepted.
fn word(message: &Message) -> u64 {
    message.payload::<Word>().map_or(0, |word| word.value.get())
}
