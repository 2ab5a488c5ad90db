//! Requests in flight whose results are wanted in the order of their sources.

use std::collections::VecDeque;

use guest_driver::compress::{Client, Completion, Full, Request, Ticket};

/// A request and what is to be known when it ends.
struct Flight<T> {
    ticket: Ticket,
    about: T,
    completion: Option<Completion>,
}

/// Requests in flight, the oldest first.
pub struct Flights<T> {
    queue: VecDeque<Flight<T>>,
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
                    self.queue.push_back(Flight { ticket, about, completion: None });
                    return Ok(());
                }
                Err(Full(back)) => output = back,
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
        while let Some(first) = self.queue.front_mut()
            && first.completion.is_none()
        {
            let Some(completion) = client.wait() else { break };
            let place = self.queue.iter_mut().find(|flight| flight.ticket == completion.ticket);
            if let Some(flight) = place {
                flight.completion = Some(completion);
            }
        }
        let Some(Flight { about, completion: Some(completion), .. }) = self.queue.pop_front() else {
            return Ok(());
        };
        ended(&about, &completion)?;
        self.spare.push(completion.output);
        Ok(())
    }
}

impl<T> Drop for Flights<T> {
    /// What is still in flight is the client's; it forgets it with its next requests.
    fn drop(&mut self) {
        self.queue.clear();
    }
}
