//! Session threads: one a device, each speaking vhost-user with one frontend after another.
//!
//! A thread of its own keeps a drain on one device from delaying another device's control messages; while nobody talks
//! to it, it sleeps in the kernel.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

/// How a session thread is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum State {
    /// Serving, with or without a frontend.
    Running,
    /// Told to stop, and finishing what is in flight.
    Stopping,
    /// Ended because it was told to.
    Ended,
    /// Ended by itself, for this reason.
    Failed(String),
}

/// All session threads of a process, by device name.
#[derive(Default)]
pub struct Sessions {
    threads: Mutex<BTreeMap<String, Session>>,
}

struct Session {
    thread: JoinHandle<()>,
    stop: Arc<dyn Fn() + Send + Sync>,
    state: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    state: Mutex<Option<State>>,
    changed: Condvar,
}

/// Why a session could not be stopped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StopError {
    /// There is none of this name.
    #[error("There is no session '{0}'")]
    Unknown(String),
    /// It did not end in time; it stays listed and can be stopped again.
    #[error("Session '{0}' did not end in time")]
    TimedOut(String),
}

impl Sessions {
    /// Starts a thread that runs `body`; `stop` makes `body` return soon and may be called from any thread, repeatedly;
    /// `ended` hears on the same thread that `body` has returned without having been stopped.
    ///
    /// The name must not be that of a session that still runs.
    pub fn spawn(
        &self,
        name: &str,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
        stop: impl Fn() + Send + Sync + 'static,
        ended: impl FnOnce(&str, &State) + Send + 'static,
    ) -> io::Result<()> {
        let mut threads = self.lock();
        if threads.get(name).is_some_and(|session| session.state.running()) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("session '{name}' runs already"),
            ));
        }
        let state = Arc::new(Progress::default());
        let progress = Arc::clone(&state);
        let label = name.to_owned();
        let thread = std::thread::Builder::new().name(format!("session-{name}")).spawn(move || {
            let stopped = progress.end(&label, catch_unwind(AssertUnwindSafe(body)));
            if !stopped {
                ended(&label, &progress.get());
            }
        })?;
        threads.insert(name.to_owned(), Session { thread, stop: Arc::new(stop), state });
        Ok(())
    }

    /// Ends one session and forgets it; waits until `deadline`.
    pub fn stop(&self, name: &str, deadline: Instant) -> Result<State, StopError> {
        let (stop, state) = {
            let threads = self.lock();
            let session = threads.get(name).ok_or_else(|| StopError::Unknown(name.to_owned()))?;
            (Arc::clone(&session.stop), Arc::clone(&session.state))
        };
        state.stopping();
        stop();
        let last = state.wait_until(deadline).ok_or_else(|| StopError::TimedOut(name.to_owned()))?;
        if let Some(session) = self.lock().remove(name) {
            // It has said its last word, so this does not wait.
            let _ = session.thread.join();
        }
        Ok(last)
    }

    /// Ends all sessions at the same time and returns the names of those that did not end until `deadline`.
    pub fn stop_all(&self, deadline: Instant) -> Vec<String> {
        let stops: Vec<_> = {
            let threads = self.lock();
            threads.values().map(|session| (Arc::clone(&session.stop), Arc::clone(&session.state))).collect()
        };
        for (stop, state) in stops {
            state.stopping();
            stop();
        }
        let names: Vec<_> = self.lock().keys().cloned().collect();
        names
            .into_iter()
            .filter(|name| matches!(self.stop(name, deadline), Err(StopError::TimedOut(_))))
            .collect()
    }

    /// Every session's state, by name.
    pub fn states(&self) -> BTreeMap<String, State> {
        self.lock().iter().map(|(name, session)| (name.clone(), session.state.get())).collect()
    }

    /// Number of sessions that have not ended.
    pub fn running(&self) -> usize {
        self.lock().values().filter(|session| session.state.running()).count()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Session>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> State {
        self.lock().clone().unwrap_or(State::Running)
    }

    fn running(&self) -> bool {
        matches!(self.get(), State::Running | State::Stopping)
    }

    fn stopping(&self) {
        let mut state = self.lock();
        if state.is_none() {
            *state = Some(State::Stopping);
        }
    }

    /// Notes how the session ended; true if it had been told to.
    fn end(&self, name: &str, outcome: std::thread::Result<Result<(), String>>) -> bool {
        let last = match outcome {
            Ok(Ok(())) => State::Ended,
            Ok(Err(reason)) => State::Failed(reason),
            Err(panic) => State::Failed(format!("the thread panicked: {}", panic_text(panic.as_ref()))),
        };
        match &last {
            State::Failed(reason) => tracing::error!(device = name, %reason, "session ended"),
            _ => tracing::info!(device = name, "session ended"),
        }
        let before = self.lock().replace(last);
        self.changed.notify_all();
        before == Some(State::Stopping)
    }

    /// The last state, if it is reached in time.
    fn wait_until(&self, deadline: Instant) -> Option<State> {
        let mut state = self.lock();
        loop {
            if let Some(last @ (State::Ended | State::Failed(_))) = state.as_ref() {
                return Some(last.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return None;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A session that runs until it is told to stop.
    fn patient(sessions: &Sessions, name: &str) {
        let (tell, told) = mpsc::channel::<()>();
        let tell = Mutex::new(Some(tell));
        let body = move || {
            let _ = told.recv();
            Ok(())
        };
        sessions.spawn(name, body, move || drop(tell.lock().unwrap().take()), |_, _| ()).unwrap();
    }

    #[test]
    fn a_session_runs_until_it_is_stopped() {
        let sessions = Sessions::default();
        patient(&sessions, "a");
        assert_eq!(sessions.states()["a"], State::Running);
        assert_eq!(sessions.stop("a", soon()), Ok(State::Ended));
        assert!(sessions.states().is_empty());
        assert_eq!(sessions.stop("a", soon()), Err(StopError::Unknown("a".into())));
    }

    #[test]
    fn a_name_can_be_used_again_once_its_session_has_ended() {
        let sessions = Sessions::default();
        patient(&sessions, "a");
        assert_eq!(
            sessions.spawn("a", || Ok(()), || (), |_, _| ()).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        sessions.stop("a", soon()).unwrap();
        patient(&sessions, "a");
        assert!(sessions.stop_all(soon()).is_empty());
    }

    #[test]
    fn a_failure_and_a_panic_are_states_with_a_reason() {
        let sessions = Sessions::default();
        sessions.spawn("fails", || Err("no disk".into()), || (), |_, _| ()).unwrap();
        sessions.spawn("panics", || panic!("boom"), || (), |_, _| ()).unwrap();
        assert_eq!(sessions.stop("fails", soon()), Ok(State::Failed("no disk".into())));
        assert_eq!(sessions.stop("panics", soon()), Ok(State::Failed("the thread panicked: boom".into())));
    }

    #[test]
    fn only_a_session_that_was_not_stopped_reports_its_end() {
        let sessions = Sessions::default();
        let (report, reported) = mpsc::channel();
        let told = report.clone();
        let body = || Ok(());
        sessions
            .spawn(
                "alone",
                body,
                || (),
                move |name, state| told.send((name.to_owned(), state.clone())).unwrap(),
            )
            .unwrap();
        assert_eq!(reported.recv().unwrap(), ("alone".to_owned(), State::Ended));
        let (keep, kept) = mpsc::channel::<()>();
        let keep = Mutex::new(Some(keep));
        let body = move || {
            let _ = kept.recv();
            Ok(())
        };
        let stop = move || drop(keep.lock().unwrap().take());
        sessions
            .spawn("stopped", body, stop, move |name, state| {
                report.send((name.to_owned(), state.clone())).unwrap()
            })
            .unwrap();
        sessions.stop("stopped", soon()).unwrap();
        assert!(reported.recv().is_err());
    }

    #[test]
    fn stopping_all_names_those_that_hang_and_waits_no_longer_than_asked() {
        let sessions = Sessions::default();
        let (keep, kept) = mpsc::channel::<()>();
        let body = move || {
            let _ = kept.recv();
            Ok(())
        };
        sessions.spawn("hangs", body, || (), |_, _| ()).unwrap();
        patient(&sessions, "ends");
        let start = Instant::now();
        assert_eq!(sessions.stop_all(start + Duration::from_millis(100)), ["hangs"]);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(sessions.states()["hangs"], State::Stopping);
        drop(keep);
        assert_eq!(sessions.stop("hangs", soon()), Ok(State::Ended));
    }
}
