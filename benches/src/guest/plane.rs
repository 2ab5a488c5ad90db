//! The control plane of a device that answers requests, while the threads of its queues run.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::attach::Guest;
use super::supervisor::{CpuMeter, Hooks};
use crate::control::{Control, Phase};
use crate::flushes::{Counters, Flushes};

/// What is known of the backend after a run.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its CPU time in the measured time.
    pub cpu: Option<Duration>,
    /// Why it submitted its batches.
    pub flushes: Option<Flushes>,
}

/// The device, and what is asked of its backend at the beginning and the end of the measured time.
pub struct Plane<D> {
    device: D,
    counters: Option<Counters>,
    cpu: CpuMeter,
    ended: bool,
    flushes: Option<Flushes>,
}

impl<D> Plane<D> {
    /// A plane for `device`; `control` is the daemon's control socket, if it is to be asked.
    pub fn new(device: D, control: Option<&Path>) -> Self {
        let counters = control.map(Counters::new);
        Self { device, counters, cpu: CpuMeter::default(), ended: false, flushes: None }
    }

    /// The device, for an orderly detach, and what was seen of its backend.
    pub fn into_parts(self) -> (D, Observed) {
        (self.device, Observed { cpu: self.cpu.used(), flushes: self.flushes })
    }
}

impl<D: Deref<Target = Guest>> Hooks for Plane<D> {
    fn enter(&mut self, phase: Phase, control: &Control) -> Result<()> {
        if let Some(counters) = &mut self.counters
            && phase == Phase::Measure
        {
            counters.begin()?;
        }
        self.cpu.enter(phase, self.device.backend_pid());
        control.advance(phase);
        if phase != Phase::Measure && !std::mem::replace(&mut self.ended, true) {
            let end = self.counters.as_mut().map(Counters::end).transpose()?;
            self.flushes = end.flatten();
        }
        Ok(())
    }

    fn wake_all(&self) {
        self.device.wake_all();
    }

    fn hung_up_within(&self, limit: Duration) -> bool {
        self.device.hung_up_within(limit)
    }

    fn outage(&mut self, _waiting: &mut dyn FnMut()) -> Result<()> {
        bail!("The backend closed the connection")
    }
}
