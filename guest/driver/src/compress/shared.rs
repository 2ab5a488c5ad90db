//! The client as futures, for any executor.
//!
//! The device is polled: nobody is called when a result is there. So somebody who waits looks for it, when the
//! [`Reaper`](crate::reaper::Reaper) finds it worth while: as long as other tasks may still submit something, a look is
//! put off, and one look serves all. A waiting future asks to be polled again at once; an executor gives the time to other
//! tasks first.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::client::{Client, Full};
use super::request::{Completion, Request, Ticket};
use crate::fallback::Counters;
use crate::reaper::Reaper;

/// A client that tasks share.
///
/// ```
/// use guest_driver::compress::{Client, Format, Options, Place, Request, Shared};
/// use guest_driver::reaper::Reaper;
///
/// # fn block_on<F: std::future::Future>(future: F) -> F::Output {
/// #     let mut future = std::pin::pin!(future);
/// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// #     loop {
/// #         if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
/// #             return output;
/// #         }
/// #     }
/// # }
/// let client = Client::open(Options { place: Place::Nowhere, ..Options::default() });
/// let shared = Shared::new(client, Reaper::default());
/// let packed = block_on(async {
///     let _task = shared.task();
///     shared.run(Request::compress(Format::Zstd, &[0; 10_000])).await.into_result()
/// });
/// assert!(packed.unwrap().len() < 100);
/// ```
#[derive(Clone)]
pub struct Shared(Arc<Mutex<State>>);

struct State {
    client: Client,
    reaper: Reaper,
    done: HashMap<Ticket, Completion>,
    wakers: HashMap<Ticket, Waker>,
    /// Tasks that may submit something.
    tasks: usize,
}

/// As long as it lives, somebody may submit something: looks are put off for it.
pub struct Task(Shared);

/// A request's end.
pub struct Reply<'a> {
    shared: Shared,
    request: Request<'a>,
    ticket: Option<Ticket>,
    output: Vec<u8>,
}

impl Shared {
    /// Shares a client.
    pub fn new(client: Client, reaper: Reaper) -> Self {
        let (done, wakers) = (HashMap::new(), HashMap::new());
        Self(Arc::new(Mutex::new(State { client, reaper, done, wakers, tasks: 0 })))
    }

    /// A panic of one task does not take the device from the others: nothing here is left half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a task begins that may submit requests.
    pub fn task(&self) -> Task {
        self.state().tasks += 1;
        Task(self.clone())
    }

    /// A request; it is submitted when the future is polled for the first time.
    pub fn run<'a>(&self, request: Request<'a>) -> Reply<'a> {
        Reply { shared: self.clone(), request, ticket: None, output: Vec::new() }
    }

    /// Looks for results, for programs that know a good moment, and wakes whom they are for. Returns how many there were.
    pub fn look(&self) -> usize {
        self.state().look(Instant::now())
    }

    /// Who did how many requests.
    pub fn counters(&self) -> Counters {
        *self.state().client.counters()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.state().tasks -= 1;
    }
}

impl State {
    fn look(&mut self, now: Instant) -> usize {
        self.reaper.looked(now);
        let mut count = 0;
        while let Some(completion) = self.client.poll() {
            count += 1;
            let ticket = completion.ticket;
            if let Some(waker) = self.wakers.remove(&ticket) {
                waker.wake();
                self.done.insert(ticket, completion);
            }
        }
        count
    }

    fn submit(&mut self, request: &Request<'_>, output: Vec<u8>, waker: &Waker) -> Result<Ticket, Full> {
        let ticket = self.client.submit(request, output)?;
        self.wakers.insert(ticket, waker.clone());
        Ok(ticket)
    }
}

impl Future for Reply<'_> {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let this = &mut *self;
        let mut state = this.shared.state();
        let now = Instant::now();
        let waker = context.waker();
        let ticket = match this.ticket {
            Some(ticket) => {
                if let Some(completion) = state.done.remove(&ticket) {
                    return Poll::Ready(completion);
                }
                state.wakers.insert(ticket, waker.clone());
                Some(ticket)
            }
            None => match state.submit(&this.request, std::mem::take(&mut this.output), waker) {
                Ok(ticket) => Some(ticket),
                Err(Full(output)) => {
                    this.output = output;
                    None
                }
            },
        };
        this.ticket = ticket;
        // What software did is there at once; and a full ring empties only if somebody looks.
        let there = state.client.pending() > state.client.in_flight();
        if there || ticket.is_none() || state.reaper.due(state.client.in_flight(), state.tasks, now) {
            state.look(now);
        }
        match ticket.and_then(|ticket| state.done.remove(&ticket)) {
            Some(completion) => Poll::Ready(completion),
            None => {
                waker.wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl Drop for Reply<'_> {
    /// Nobody waits for it any more; what it comes to is dropped.
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.shared.state();
            state.wakers.remove(&ticket);
            state.done.remove(&ticket);
        }
    }
}
