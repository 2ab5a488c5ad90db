//! `vhostd-bench blackout`: frames flow from guest to guest, the daemon is killed and started again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::Serialize;

use crate::compare::statistics::Spread;
use crate::net::{self, Load, Report, Target};
use crate::process::{Process, beside_me};
use crate::units::{parse_count, parse_duration};

/// Longest time from the restart to the first frame that counts as reached.
const BACK_AIM: f64 = 200.0;
/// Descriptors of a ring: fewer frames may be lost.
const RING: u64 = 256;
/// Frames flow for so long before the daemon dies.
const BEFORE: Duration = Duration::from_millis(300);
/// They have so long to flow again.
const AFTER: Duration = Duration::from_millis(700);

/// Kills vhostd-net while frames flow, starts it again, and measures what was lost and for how long
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench blackout
  vhostd-bench blackout --rounds 50 --rate 1m --packed --json

Exit code 0 if no frame came twice, fewer than a ring were lost each time, and frames flowed again within 200 ms of the
restart; 1 otherwise.")]
pub struct Options {
    /// The daemon (default: vhostd-net beside this program)
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// How often it is killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Frames per second
    #[arg(long, default_value = "200k", value_parser = parse_count, value_name = "PPS")]
    pub rate: u64,
    /// How long there is no daemon
    #[arg(long, default_value = "0", value_parser = parse_duration, value_name = "TIME")]
    pub pause: Duration,
    /// Packed instead of split rings
    #[arg(long)]
    pub packed: bool,
    /// Accepts VIRTIO_F_IN_ORDER
    #[arg(long)]
    pub in_order: bool,
    /// Prints JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Blackout {
    /// Kills.
    pub rounds: u32,
    /// Frames per second.
    pub rate: u64,
    /// Frames lost in each.
    pub lost: Spread,
    /// Frames that came twice, in all of them.
    pub duplicates: u64,
    /// From the last frame before to the first one after, in milliseconds.
    pub blind_ms: Spread,
    /// From the start of the new process to the first frame, in milliseconds.
    pub back_ms: Spread,
    /// No duplicate, fewer lost than a ring has descriptors, back in time.
    pub reached: bool,
}

struct Round {
    lost: u64,
    duplicates: u64,
    blind_ms: f64,
    back_ms: f64,
}

/// Measures and prints.
pub fn main(options: &Options) -> Result<ExitCode> {
    let daemon = options.daemon.clone().map_or_else(|| beside_me("vhostd-net"), Ok)?;
    let rounds = (0..options.rounds).map(|_| round(&daemon, options)).collect::<Result<Vec<_>>>()?;
    let blackout = Blackout::of(&rounds, options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&blackout)?);
    } else {
        print!("{}", blackout.text());
    }
    Ok(if blackout.reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Blackout {
    fn of(rounds: &[Round], options: &Options) -> Result<Self> {
        let spread = |of: fn(&Round) -> f64| {
            let values: Vec<f64> = rounds.iter().map(of).collect();
            Spread::of(&values).context("There was no round")
        };
        let lost = spread(|round| round.lost as f64)?;
        let (blind_ms, back_ms) = (spread(|round| round.blind_ms)?, spread(|round| round.back_ms)?);
        let duplicates = rounds.iter().map(|round| round.duplicates).sum();
        let reached = duplicates == 0 && lost.max < RING as f64 && back_ms.max < BACK_AIM;
        Ok(Self { rounds: options.rounds, rate: options.rate, lost, duplicates, blind_ms, back_ms, reached })
    }

    fn text(&self) -> String {
        format!(
            "{} kills at {} frames/s: {} lost (at most {}), {} twice, blind for {:.1} ms (at most {:.1}), \
             back {:.1} ms after the restart (at most {:.1})\n",
            self.rounds,
            self.rate,
            self.lost.median,
            self.lost.max,
            self.duplicates,
            self.blind_ms.median,
            self.blind_ms.max,
            self.back_ms.median,
            self.back_ms.max,
        )
    }
}

fn round(daemon: &Path, options: &Options) -> Result<Round> {
    let folder = tempfile::tempdir().context("Cannot create a temporary folder")?;
    let sockets: Vec<PathBuf> = ["a.sock", "b.sock"].map(|name| folder.path().join(name)).into();
    let mut process = start(daemon, &sockets)?;
    for socket in &sockets {
        process.wait_for_socket(socket)?;
    }
    let load = load(options)?;
    let target = Target { sockets: sockets.clone(), server: false };
    let driver = std::thread::spawn(move || net::run(&target, &load, None, &mut |_| {}));
    std::thread::sleep(BEFORE);
    let killed = Instant::now();
    process.kill();
    std::thread::sleep(options.pause);
    let down = killed.elapsed();
    let mut process = start(daemon, &sockets)?;
    let report = driver.join().map_err(|_| anyhow!("The driver panicked"))?;
    let report = report.with_context(|| process.output())?;
    process.stop();
    Ok(Round::of(&report, down))
}

impl Round {
    fn of(report: &Report, down: Duration) -> Self {
        Self {
            lost: report.lost.unwrap_or(0),
            duplicates: report.duplicates,
            blind_ms: report.silence_ms,
            back_ms: (report.silence_ms - down.as_secs_f64() * 1e3).max(0.0),
        }
    }
}

fn start(daemon: &Path, sockets: &[PathBuf]) -> Result<Process> {
    let mut words = vec![daemon.display().to_string()];
    for socket in sockets {
        words.extend(["--port".to_owned(), format!("socket={}", socket.display())]);
    }
    Process::start(&words, &[])
}

fn load(options: &Options) -> Result<Load> {
    let time = (BEFORE + options.pause + AFTER).as_secs_f64();
    let mut text = format!("pair --rate {} --runtime {time} --reconnect", options.rate);
    for (on, word) in [(options.packed, " --packed"), (options.in_order, " --in-order")] {
        if on {
            text.push_str(word);
        }
    }
    Load::parse(&text).map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blackout(lost: u64, duplicates: u64, back_ms: f64) -> Blackout {
        let options = Options {
            daemon: None,
            rounds: 2,
            rate: 1000,
            pause: Duration::ZERO,
            packed: false,
            in_order: false,
            json: false,
        };
        let quiet = Round { lost: 1, duplicates: 0, blind_ms: 12.0, back_ms: 10.0 };
        Blackout::of(&[quiet, Round { lost, duplicates, blind_ms: back_ms + 2.0, back_ms }], &options)
            .unwrap()
    }

    #[test]
    fn one_bad_round_misses_the_aim() {
        assert!(blackout(3, 0, 50.0).reached);
        assert!(!blackout(RING, 0, 50.0).reached);
        assert!(!blackout(3, 1, 50.0).reached);
        assert!(!blackout(3, 0, 250.0).reached);
    }

    #[test]
    fn medians_and_the_worst_round_are_told() {
        let text = blackout(3, 0, 50.0).text();
        assert!(text.contains("2 lost (at most 3), 0 twice") && text.contains("(at most 50.0)"), "{text}");
    }
}
