//! A device that serves its rings on the session's own thread and checks what the session promises it.

use std::fs::File;
use std::sync::Arc;

use memory::{DirtyLog, MemoryTable, MemoryView};
use vhost_user::message::protocol;
use vhost_user::{Device, Refused};
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures};
use vmm_sys_util::eventfd::EventFd;

/// Queues of the device; messages name a fourth one, which it does not have.
pub const QUEUES: usize = 3;

/// The features offered.
pub const FEATURES: u64 = RingFeatures::ALL | 1 << 32;

/// Chains served at one look: a hostile ring may never run dry.
const BURST: u16 = 64;

/// The device.
pub struct Dummy<'f> {
    queues: [Option<Box<Queue>>; QUEUES],
    memory: Arc<MemoryTable>,
    /// A memory file that is cut short as soon as a ring is enabled.
    doomed: Option<&'f File>,
    /// Whether a connection is going on.
    pub connected: bool,
}

impl<'f> Dummy<'f> {
    /// A device without a connection.
    pub fn new(doomed: Option<&'f File>) -> Self {
        Self { queues: [const { None }; QUEUES], memory: MemoryTable::empty(), doomed, connected: true }
    }

    /// Whether it is as it was before anybody connected.
    pub fn is_idle(&self) -> bool {
        self.queues.iter().all(Option::is_none) && self.memory.regions().count() == 0 && !self.connected
    }

    fn serve(&mut self, index: u16) {
        let view = MemoryView::new(Arc::clone(&self.memory));
        let Some(queue) = &mut self.queues[usize::from(index)] else { return };
        let mut chain = Chain::new();
        for _ in 0..queue.ring.fetch(BURST) {
            match queue.ring.next(&view, &mut chain) {
                Ok(()) => {
                    let _ = chain.write_at(&view, 0, &[1; 16]);
                    queue.ring.complete(&view, &chain, 16.min(chain.writable_len() as u32));
                }
                Err(why) => queue.break_ring(why),
            }
        }
        queue.publish();
    }
}

impl Device for Dummy<'_> {
    fn max_queues(&self) -> u16 {
        QUEUES as u16
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG
            | protocol::STATUS
            | protocol::NET_MTU
            | protocol::RARP
            | protocol::CRYPTO_SESSION
            | protocol::DEVICE_STATE
    }

    fn read_config(&self, _offset: usize, buf: &mut [u8]) {
        buf.fill(0x11);
    }

    fn write_config(&mut self, _offset: usize, data: &[u8], migration: bool) -> Result<(), Refused> {
        if migration || data.len() < 8 { Ok(()) } else { Err(Refused("too much")) }
    }

    fn negotiated(&mut self, features: u64) {
        assert_eq!(features & !FEATURES, 0, "a feature that was not offered");
    }

    fn set_memory(&mut self, table: Arc<MemoryTable>) {
        for queue in self.queues.iter_mut().flatten() {
            queue
                .rebuild_after_memory_change(&table)
                .expect("the session stops rings that lose their memory");
        }
        self.memory = table;
    }

    fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        for queue in self.queues.iter_mut().flatten() {
            queue.set_log(log.clone(), None);
        }
    }

    fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        let place = &mut self.queues[usize::from(index)];
        assert!(place.is_none(), "a ring is started while it runs");
        *place = Some(queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        self.serve(index);
        self.queues[usize::from(index)].take()
    }

    fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        if let Some(queue) = &mut self.queues[usize::from(index)] {
            queue.set_call(call);
        }
    }

    fn set_err(&mut self, index: u16, err: Option<EventFd>) {
        if let Some(queue) = &mut self.queues[usize::from(index)] {
            queue.set_err(err);
        }
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) {
        if enabled {
            if let Some(file) = self.doomed.take() {
                file.set_len(0).expect("truncate");
            }
            self.serve(index);
        }
    }

    fn set_status(&mut self, status: u8) {
        assert!(status != 0 || self.queues.iter().all(Option::is_none), "a reset while rings run");
    }

    fn reset(&mut self) {
        assert!(self.queues.iter().all(Option::is_none), "a reset while rings run");
    }

    fn disconnected(&mut self) {
        assert!(self.connected, "disconnected twice");
        self.connected = false;
        self.queues = [const { None }; QUEUES];
    }

    fn set_mtu(&mut self, _mtu: u16) -> Result<(), Refused> {
        Ok(())
    }

    fn rarp(&mut self, _mac: [u8; 6]) -> Result<(), Refused> {
        Ok(())
    }

    fn create_crypto_session(&mut self, _description: &[u8]) -> Result<u64, Refused> {
        Ok(1)
    }

    fn save_state(&mut self) -> Result<Vec<u8>, Refused> {
        Ok(vec![3; 100_000])
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), Refused> {
        if state.len() < 4 { Ok(()) } else { Err(Refused("not a state of ours")) }
    }
}
