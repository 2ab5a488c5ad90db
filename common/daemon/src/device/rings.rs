//! The queues of a device as its session uses them: on workers, which may fail.

use std::sync::Arc;

use memory::{DirtyLog, MemoryTable};
use runtime::attach::Attached;
use runtime::rings::{Reply, RingCommand};
use runtime::worker::{WorkerGone, WorkerHandle};
use virtqueue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// The queues of one device on its workers. What a worker that has failed cannot do any more is logged and left: the driver
/// was told by the err eventfds of its rings.
pub struct Rings<M> {
    name: String,
    attached: Attached<M>,
}

/// Tells a worker something, and waits for its answer.
pub fn tell<M, R>(worker: &WorkerHandle<M>, message: impl FnOnce(Reply<R>) -> M) -> Result<R, WorkerGone> {
    let (reply, answer) = Reply::new();
    worker.send(message(reply))?;
    answer.recv().map_err(|_| worker.gone())
}

/// Tells each of these workers something, one after another.
pub fn tell_each<M, R>(
    workers: &[WorkerHandle<M>],
    message: impl Fn(Reply<R>) -> M,
) -> Result<Vec<R>, WorkerGone> {
    workers.iter().map(|worker| tell(worker, &message)).collect()
}

/// The same where it does not matter whether a worker is still there: one that is gone has let go as well.
pub fn let_go<M>(workers: &[WorkerHandle<M>], message: impl Fn(Reply<()>) -> M) {
    workers.iter().for_each(|worker| drop(tell(worker, &message)));
}

impl<M: From<RingCommand>> Rings<M> {
    /// The queues of the device with this name.
    pub fn new(name: &str, attached: Attached<M>) -> Self {
        Self { name: name.to_owned(), attached }
    }

    /// Where they are.
    pub fn attached(&self) -> &Attached<M> {
        &self.attached
    }

    fn report<R>(&self, outcome: Result<R, WorkerGone>) -> Option<R> {
        outcome
            .inspect_err(|error| tracing::error!(device = self.name, %error, "The device has lost a worker"))
            .ok()
    }

    /// Gives a queue to its worker.
    pub fn start_queue(&mut self, index: u16, queue: Box<Queue>) {
        let outcome = self.attached.start_queue(index, queue);
        self.report(outcome);
    }

    /// Drains a queue and takes it back.
    pub fn stop_queue(&mut self, index: u16) -> Option<Box<Queue>> {
        let outcome = self.attached.stop_queue(index);
        self.report(outcome).flatten()
    }

    /// The workers use this memory when it returns.
    pub fn set_memory(&mut self, table: Arc<MemoryTable>) {
        let outcome = self.attached.set_memory(table);
        self.report(outcome);
    }

    /// Every write is logged when it returns, or none any more.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        let outcome = self.attached.set_log(log);
        self.report(outcome);
    }

    /// Replaces a queue's interrupt.
    pub fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        let outcome = self.attached.set_call(index, call);
        self.report(outcome);
    }

    /// Replaces a queue's error event.
    pub fn set_err(&mut self, index: u16, err: Option<EventFd>) {
        let outcome = self.attached.set_err(index, err);
        self.report(outcome);
    }

    /// Enables or disables a queue.
    pub fn enable_queue(&mut self, index: u16, enabled: bool) {
        let outcome = self.attached.enable_queue(index, enabled);
        self.report(outcome);
    }

    /// Stops all queues, and lets go of memory and log.
    pub fn disconnected(&mut self) {
        let outcome = self.attached.disconnected();
        self.report(outcome);
    }
}

/// Methods of a [`vhost_user::Device`] that do nothing but hand on to the [`Rings`] in a field; for a device whose queues
/// have other numbers on the workers, by a method that says which.
#[macro_export]
macro_rules! forward_to_rings {
    ($rings:ident) => {
        $crate::forward_to_rings!(@ $rings, |_device: &Self, index: u16| index);
    };
    ($rings:ident, $place:ident) => {
        $crate::forward_to_rings!(@ $rings, |device: &Self, index: u16| device.$place(index));
    };
    (@ $rings:ident, $place:expr) => {
        fn set_memory(&mut self, table: ::std::sync::Arc<::memory::MemoryTable>) {
            self.$rings.set_memory(table);
        }

        fn set_log(&mut self, log: Option<::std::sync::Arc<::memory::DirtyLog>>) {
            self.$rings.set_log(log);
        }

        fn set_call(&mut self, index: u16, call: Option<::vmm_sys_util::eventfd::EventFd>) {
            let index = ($place)(self, index);
            self.$rings.set_call(index, call);
        }

        fn set_err(&mut self, index: u16, err: Option<::vmm_sys_util::eventfd::EventFd>) {
            let index = ($place)(self, index);
            self.$rings.set_err(index, err);
        }

        fn enable_queue(&mut self, index: u16, enabled: bool) {
            let index = ($place)(self, index);
            self.$rings.enable_queue(index, enabled);
        }
    };
}
