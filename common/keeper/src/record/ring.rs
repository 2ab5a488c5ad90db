//! One ring, as the frontend has set it up.

use std::os::fd::OwnedFd;

use vhost_user::message::VringAddr;

/// An event of a ring.
pub(crate) enum Event {
    /// An eventfd.
    Fd(OwnedFd),
    /// The frontend said that there is none (NOFD).
    None,
}

/// The state of a ring between two messages.
#[derive(Default)]
pub(crate) struct Ring {
    /// `SET_VRING_NUM`.
    pub num: Option<u32>,
    /// Where the ring stands, as long as it has not run since. `None`: where the ring itself says.
    pub base: Option<u32>,
    /// `SET_VRING_ADDR`.
    pub addr: Option<VringAddr>,
    /// `SET_VRING_ENDIAN`.
    pub endian: Option<u32>,
    /// `SET_VRING_KICK`.
    pub kick: Option<Event>,
    /// `SET_VRING_CALL`.
    pub call: Option<Event>,
    /// `SET_VRING_ERR`.
    pub err: Option<Event>,
    /// `SET_VRING_ENABLE`, if it ever came.
    pub enabled: Option<bool>,
    /// It runs.
    pub started: bool,
}

impl Ring {
    pub fn set_num(&mut self, num: u32) {
        // Accepted for a running ring only when it is disabled, and then the change is the stop, or no change at all.
        if self.started && self.num != Some(num) {
            self.stop(None);
        }
        self.num = Some(num);
    }

    pub fn set_base(&mut self, base: u32) {
        if self.started {
            self.stop(None);
        }
        self.base = Some(base);
    }

    pub fn set_addr(&mut self, addr: VringAddr) {
        let place = |addr: &VringAddr| (addr.descriptor, addr.available, addr.used);
        let moved = self.addr.replace(addr).is_none_or(|before| place(&before) != place(&addr));
        // A disabled ring that is moved stops; an enabled one goes on at the new place.
        if self.started && moved && self.enabled == Some(false) {
            self.stop(None);
        }
    }

    pub fn set_kick(&mut self, kick: Event) {
        self.kick = Some(kick);
        self.started = true;
    }

    pub fn kick_in_band(&mut self) {
        self.kick.get_or_insert(Event::None);
        self.started = true;
    }

    /// The ring has stopped, here if that is known.
    pub fn stop(&mut self, base: Option<u32>) {
        self.base = base;
        self.kick = None;
        self.started = false;
    }
}
