//! Logs on standard error: `tracing`, text or JSON, the level changeable while running; and a limiter for what a guest
//! can trigger.

use std::collections::HashMap;
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

pub use vhost_user::RateLimited;

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
}
