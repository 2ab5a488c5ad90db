//! Progress bars on the terminal; nothing where there is none.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::units::show_rate;

/// A bar over `count` equal steps with the remaining time.
pub fn steps(count: u64, quiet: bool) -> ProgressBar {
    let bar = bar(count, quiet, "{bar:30} {pos}/{len}, {eta} left  {wide_msg}");
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Steps of the bar of a load.
const RESOLUTION: u64 = 1000;

/// A bar over one load.
pub fn load(quiet: bool) -> ProgressBar {
    bar(RESOLUTION, quiet, "{prefix}{bar:30} {percent:>3} %  {wide_msg}")
}

/// State of a run for a live display.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time since the load began, warm-up included.
    pub elapsed: Duration,
    /// Share of the load that is done, 0 to 1: of its time, or of its requests if they are counted.
    pub fraction: f64,
    /// Requests or frames completed so far.
    pub completed: u64,
    /// The backend is gone and waited for.
    pub outage: bool,
}

/// Shows the state of a load on its bar; `unit` is what its rate counts.
pub fn show(bar: &ProgressBar, progress: Progress, unit: &str) {
    bar.set_position((progress.fraction * RESOLUTION as f64) as u64);
    let rate = progress.completed as f64 / progress.elapsed.as_secs_f64().max(1e-3);
    let outage = if progress.outage { ", waiting for the backend to come back" } else { "" };
    bar.set_message(format!("{} {unit} so far{outage}", show_rate(rate)));
}

fn bar(length: u64, quiet: bool, template: &str) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    let style = ProgressStyle::with_template(template).expect("the templates above are valid");
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}
