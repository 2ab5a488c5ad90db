//! A bar for whoever waits at a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work that is done sooner gets no bar.
const PATIENCE: Duration = Duration::from_millis(700);

const KNOWN: &str = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const UNKNOWN: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";

/// How far one file is.
pub struct Progress {
    bar: ProgressBar,
    since: Instant,
}

impl Progress {
    /// Of a file with this name and length; shown only on a terminal, and not at once.
    pub fn new(name: &str, len: Option<u64>, wanted: bool) -> Self {
        let since = Instant::now();
        if !wanted || !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), since };
        }
        let bar = ProgressBar::hidden();
        let style = ProgressStyle::with_template(if len.is_some() { KNOWN } else { UNKNOWN });
        if let Some(len) = len {
            bar.set_length(len);
        }
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        Self { bar, since }
    }

    /// So many bytes more were read.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.bar.is_hidden() && !self.bar.message().is_empty() && self.since.elapsed() > PATIENCE {
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr_with_hz(5));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
