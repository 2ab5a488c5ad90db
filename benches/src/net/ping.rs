//! One frame to and fro: round trips.

use std::time::Duration;

use super::client::RingError;
use super::job::Job;
use super::outage::Outage;
use crate::control::{Control, Phase};

/// A frame that has not come back after so long never will.
const LOST: Duration = Duration::from_millis(500);

impl Job {
    /// Sends a frame from the first guest to the last and one back, and again: a round trip is both ways.
    pub(super) fn ping_pong(&mut self, control: &Control, outage: &Outage) -> Result<(), RingError> {
        let last = self.lanes.len() - 1;
        let mut left = self.load.packets.unwrap_or(u64::MAX);
        while self.follow(control) < Phase::Drain && left > 0 {
            outage.hold(self.index, || self.bases());
            left -= 1;
            let begin = self.clock.now();
            // In a loop the backend sends the frame back; a second guest has to.
            let arrived = self.pass(0, last, control)? && (last == 0 || self.pass(last, 0, control)?);
            let time = self.clock.now().saturating_sub(begin);
            if arrived {
                self.live.latencies.record(self.clock.nanos(time));
                self.live.busy += time;
            } else if control.phase() < Phase::Drain {
                self.tally.timeouts += 1;
            }
            control.report(self.index, self.live.received);
        }
        Ok(())
    }

    /// Sends a frame from lane `from` and waits for it at lane `to`; `false` if it does not come.
    fn pass(&mut self, from: usize, to: usize, control: &Control) -> Result<bool, RingError> {
        let transmit = &mut self.lanes[from].pair.transmit;
        let taken = u64::from(transmit.reclaim()?);
        self.live.taken += taken;
        let transmit = &mut self.lanes[from].pair.transmit;
        let number = transmit.sent();
        let stream = transmit.stream();
        if transmit.send(1) == 0 {
            return Ok(false);
        }
        self.live.sent += 1;
        let deadline = self.clock.now() + self.clock.ticks(LOST.as_nanos() as u64);
        while self.lanes[to].inbox.next(stream) <= number {
            let received = self.lanes[to].receive(1)?;
            self.live.received += u64::from(received);
            if received > 0 {
                continue;
            }
            if self.clock.now() > deadline || control.phase() >= Phase::Drain {
                return Ok(false);
            }
            if self.load.rings.interrupt {
                self.sleep_for_arrival(to, LOST);
            } else {
                std::hint::spin_loop();
            }
        }
        self.live.bursts += 1;
        Ok(true)
    }

    /// Sleeps until something arrives at one lane.
    fn sleep_for_arrival(&mut self, lane: usize, limit: Duration) {
        let receive = &mut self.lanes[lane].pair.receive;
        if !receive.ring.arm() {
            crate::wait::readable(receive.ring.call_fd(), Some(limit));
        }
        receive.ring.drain_interrupts();
        receive.ring.suppress();
    }
}
