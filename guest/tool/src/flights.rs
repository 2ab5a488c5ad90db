//! Requests in flight whose results are wanted in the order of their sources.

use std::collections::VecDeque;

use guest_driver::compress::{Client, Completion, Full, Request, Ticket};

/// Requests in flight, the oldest first, with what is to be known of each when it ends.
pub struct Flights<T> {
    queue: VecDeque<(Ticket, T)>,
    /// Buffers for results, to be used again.
    spare: Vec<Vec<u8>>,
    depth: usize,
}

impl<T> Flights<T> {
    /// At most `depth` at a time.
    pub fn new(depth: usize) -> Self {
        Self { queue: VecDeque::new(), spare: Vec::new(), depth: depth.max(1) }
    }

    /// Starts a request. Those that have to end first are given to `ended`, in order.
    pub fn start<E>(
        &mut self,
        client: &mut Client,
        request: &Request<'_>,
        about: T,
        mut ended: impl FnMut(&T, &Completion) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.queue.len() >= self.depth {
            self.land(client, &mut ended)?;
        }
        let mut output = self.spare.pop().unwrap_or_default();
        loop {
            match client.submit(request, output) {
                Ok(ticket) => {
                    self.queue.push_back((ticket, about));
                    return Ok(());
                }
                Err(Full(back)) => output = back,
            }
            if self.queue.is_empty() {
                // What an earlier file has left in flight: nobody waits for it.
                drop(client.wait());
            }
            self.land(client, &mut ended)?;
        }
    }

    /// Waits for all.
    pub fn finish<E>(
        &mut self,
        client: &mut Client,
        mut ended: impl FnMut(&T, &Completion) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.queue.is_empty() {
            self.land(client, &mut ended)?;
        }
        Ok(())
    }

    /// Waits for the oldest.
    fn land<E>(
        &mut self,
        client: &mut Client,
        ended: &mut impl FnMut(&T, &Completion) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((ticket, about)) = self.queue.pop_front() else { return Ok(()) };
        let completion = client.wait_for(ticket).expect("a request that was taken ends");
        ended(&about, &completion)?;
        self.spare.push(completion.output);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_driver::compress::{Checksum, Options, Place};

    #[test]
    fn results_come_in_the_order_of_their_sources_until_one_is_refused() {
        let mut client = Client::open(Options { place: Place::Nowhere, ..Options::default() });
        let mut flights = Flights::new(3);
        let mut seen = Vec::new();
        for number in 0u8..10 {
            let source = [number];
            let request = Request::sum(Checksum::Adler32, &source);
            let ended = |about: &u8, done: &Completion| {
                seen.push((*about, done.checksum));
                if *about == 5 { Err("enough") } else { Ok(()) }
            };
            let result = flights.start(&mut client, &request, number, ended);
            assert_eq!(result.is_err(), number == 8, "the sixth lands when the ninth starts");
            if result.is_err() {
                break;
            }
        }
        // Adler-32 of one byte.
        let expected = |number: u8| (number, u64::from(number + 1) * 0x1_0001);
        assert_eq!(seen, (0..=5).map(expected).collect::<Vec<_>>());
    }
}
