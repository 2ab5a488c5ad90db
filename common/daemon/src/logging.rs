//! Logs on standard error: `tracing`, text or JSON, the level changeable while running; and a limiter for what a guest
//! can trigger.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::Failure;
use crate::cli::{LogFormat, LogLevel};

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

impl LogLevel {
    /// The level as it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Changes the level of a running process.
#[derive(Clone)]
pub struct Control {
    handle: reload::Handle<LevelFilter, Registry>,
}

impl Control {
    /// The level now.
    pub fn level(&self) -> LogLevel {
        let current = self.handle.clone_current().unwrap_or(LevelFilter::OFF);
        let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
        levels.into_iter().find(|level| LevelFilter::from(*level) == current).unwrap_or(LogLevel::Off)
    }

    /// Changes the level for all threads.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only when the subscriber is gone, and it lives as long as the process.
        let _ = self.handle.reload(LevelFilter::from(level));
    }
}

/// Starts logging; once a process.
pub fn init(level: LogLevel, format: LogFormat) -> Result<Control, Failure> {
    let (filter, handle) = reload::Layer::new(LevelFilter::from(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The filter comes first and is global, so that a disabled level costs one atomic load.
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.with_filter(Places::default()))
        .try_init()
        .map_err(|error| Failure::runtime(format!("Logging cannot be started: {error}")))?;
    Ok(Control { handle })
}

/// Most lines a minute from one place in the code: enough for two hundred disks that start, and some 40 MB a day at worst.
const LINES_PER_MINUTE: u32 = 200;

/// Lets each place in the code log a bounded number of lines, except for what was asked for by a higher level: a guest that
/// breaks its ring, or a front-end that connects, in a loop must not fill the host's disk.
#[derive(Default)]
struct Places(Mutex<HashMap<Identifier, Place>>);

/// One place in the code.
#[derive(Default)]
struct Place {
    minute: u64,
    lines: u32,
}

impl Place {
    /// Whether one more line may be written.
    fn permit_at(&mut self, now: Duration) -> bool {
        let minute = now.as_secs() / 60;
        if minute != self.minute {
            *self = Self { minute, lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES_PER_MINUTE
    }
}

impl<S> Filter<S> for Places {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let place = event.metadata();
        if *place.level() > Level::INFO {
            return true;
        }
        let now = Duration::from_nanos(runtime::cpu::monotonic_ns());
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(place.callsite()).or_default().permit_at(now)
    }
}

/// Lets a bounded number of messages a second through and counts the rest: what a guest can trigger must not fill the
/// host's disk.
///
/// ```
/// static FAULTS: daemon::logging::RateLimited = daemon::logging::RateLimited::per_second(5);
/// if let Some(suppressed) = FAULTS.permit() {
///     tracing::warn!(suppressed, "ring broken by the guest");
/// }
/// ```
pub struct RateLimited {
    limit: u32,
    /// Second of the window in the upper half, messages in it in the lower half.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimited {
    /// At most `limit` messages in each second.
    pub const fn per_second(limit: u32) -> Self {
        Self { limit, window: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a message may be logged now, with the number of messages that were not since the last one.
    pub fn permit(&self) -> Option<u64> {
        self.permit_at(Duration::from_nanos(runtime::cpu::monotonic_ns()))
    }

    fn permit_at(&self, now: Duration) -> Option<u64> {
        // Only the low 32 bits of the second matter: a window is only ever compared with its neighbours.
        let second = now.as_secs() << 32;
        let take = |window: u64| {
            let count = if window & !u64::from(u32::MAX) == second { window as u32 } else { 0 };
            (count < self.limit).then(|| second | u64::from(count + 1))
        };
        // Relaxed: the counters order nothing but themselves.
        match self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_quiet_for_the_rest_of_the_minute_once_it_has_said_enough() {
        let mut place = Place::default();
        let lines = |place: &mut Place, second| {
            (0..1000).filter(|_| place.permit_at(Duration::from_secs(second))).count() as u32
        };
        assert_eq!(lines(&mut place, 60), LINES_PER_MINUTE);
        assert_eq!(lines(&mut place, 119), 0);
        assert_eq!(lines(&mut place, 120), LINES_PER_MINUTE);
    }

    #[test]
    fn messages_beyond_the_limit_are_counted_and_reported_in_the_next_second() {
        let limited = RateLimited::per_second(2);
        let at = |ms| limited.permit_at(Duration::from_millis(ms));
        assert_eq!([at(1000), at(1300), at(1600), at(1999)], [Some(0), Some(0), None, None]);
        assert_eq!([at(2000), at(2001), at(2002)], [Some(2), Some(0), None]);
        assert_eq!(at(10_000), Some(1));
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_through() {
        let limited = RateLimited::per_second(0);
        assert!((0..100).all(|ms| limited.permit_at(Duration::from_millis(ms * 500)).is_none()));
    }

    #[test]
    fn threads_together_stay_below_the_limit() {
        let limited = RateLimited::per_second(10);
        let passed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if limited.permit_at(Duration::from_secs(7)).is_some() {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 10);
        assert_eq!(limited.suppressed.into_inner(), 3990);
    }
}
