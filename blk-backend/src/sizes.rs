//! Notices files that grow while a guest uses them: one look at each every few seconds. The kernel has no event
//! for it that does not come with every write as well.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a growth may go unnoticed. At this pace fifty disks cost some ten microseconds of CPU time a second.
const INTERVAL: Duration = Duration::from_secs(5);

/// A thread that sleeps and looks. Dropping it ends the thread.
pub struct SizeWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SizeWatch {
    /// Calls `look` again and again, until it returns false or the watch is dropped.
    pub fn start(look: impl Fn() -> bool + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let body =
            move || while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) && look() {};
        let thread = std::thread::Builder::new().name("blk-sizes".into()).spawn(body)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for SizeWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It runs nothing that could panic but `look`, whose panic has been reported then.
            let _ = thread.join();
        }
    }
}
