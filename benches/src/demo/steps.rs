//! The steps of the demo, in the order they are shown.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Options;
use super::daemon::{Daemon, QUEUES};
use crate::blk::client::{Disk, Operation, Setup};
use crate::blk::options::Mix;
use crate::blk::verify::Pattern;
use crate::blk::wire::feature;
use crate::blk::{self, Load, Report};
use crate::guest::Shown;
use crate::guest::options::{Pace, RingOptions, Timing};
use crate::progress::Progress;
use crate::units::{show_rate, show_size};
use crate::{cpu, progress};

/// Block size of the demo.
const BLOCK: u64 = 4096;
/// Seed of the block contents.
const SEED: u64 = 7;

/// The running demo.
pub struct Stage {
    daemon: Daemon,
    options: Options,
    speeds: Vec<(String, Report)>,
}

impl Stage {
    /// Nothing has happened yet.
    pub fn new(daemon: Daemon, options: &Options) -> Self {
        Self { daemon, options: options.clone(), speeds: Vec::new() }
    }

    /// The daemon starts.
    pub fn start(&mut self) -> Result<()> {
        println!("$ {}", self.daemon.words().join(" "));
        let took = self.daemon.start()?;
        let memory = cpu::resident_bytes(self.daemon.pid()?)?;
        passed(
            "started",
            format!("listening after {} ms, {:.1} MiB resident", took.as_millis(), mib(memory)),
        );
        Ok(())
    }

    /// Every block is written and read back.
    pub fn write_and_read_back(&mut self) -> Result<()> {
        let load = Load { verify: true, ..self.whole_disk() };
        let report = self.run("write all, read back", &load)?;
        let expected = self.blocks() / u64::from(QUEUES) * u64::from(QUEUES);
        ensure!(
            report.verified_blocks == expected,
            "{} of {expected} blocks were read back",
            report.verified_blocks
        );
        let detail = format!("{} written and read back, every byte compared", show_size(expected * BLOCK));
        passed("verified", detail);
        Ok(())
    }

    /// Discard gives host storage back, write-zeroes gives zeros, flush completes.
    pub fn discard_and_zero(&mut self) -> Result<()> {
        let before = self.daemon.allocated()?;
        let half = self.options.size / 2 / BLOCK * BLOCK;
        let setup = Setup { block: BLOCK as usize, depth: 1, ..Setup::default() };
        let (disk, mut queues) = Disk::attach(self.daemon.socket(), &setup)?;
        let queue = &mut queues[0];
        let discards = disk.features() & feature::DISCARD != 0;
        if discards {
            for offset in (0..half).step_by(1 << 20) {
                queue.execute(Operation::Discard, offset, (half - offset).min(1 << 20)).context("Discard")?;
            }
        }
        queue.execute(Operation::WriteZeroes, half, BLOCK).context("Write-zeroes")?;
        queue.execute(Operation::Flush, 0, 0).context("Flush")?;
        queue.execute(Operation::Read, half, BLOCK).context("Read")?;
        let zeroed = queue.read_data(0, BLOCK as usize).iter().all(|&byte| byte == 0);
        ensure!(zeroed, "A block is not zero after write-zeroes");
        disk.detach(queues)?;
        let freed = before.saturating_sub(self.daemon.allocated()?);
        ensure!(freed > 0 || !discards || before == 0, "Discarding half of the disk gave no storage back");
        let detail = if discards {
            format!("{:.0} MiB given back to the host, zeros read as zeros", mib(freed))
        } else {
            "zeros read as zeros; this file system cannot discard".to_owned()
        };
        passed("discard, zero, flush", detail);
        Ok(())
    }

    /// The daemon is killed in the middle of a verified load and started again.
    pub fn survive_kill(&mut self) -> Result<()> {
        let load = Load { rwmixread: 30, verify: true, reconnect: true, ..self.load(Mix::Randrw) };
        let kill_at = self.options.runtime / 2;
        let socket = self.daemon.socket().to_owned();
        let bar = self.bar("kill -9 under load");
        let (daemon, mut killed, mut problem) = (&mut self.daemon, false, None);
        let mut director = |state: Progress| {
            progress::show(&bar, state, "IOPS");
            if !killed && state.elapsed >= kill_at {
                daemon.kill();
                killed = true;
            } else if state.outage && !daemon.is_running() && problem.is_none() {
                problem = daemon.start().err();
            }
        };
        let result = blk::run(&socket, &load, &mut director);
        bar.finish_and_clear();
        if let Some(problem) = problem {
            return Err(problem.context("The daemon did not start again"));
        }
        let report = result?.unless_wrong()?;
        ensure!(report.outages_ms.len() == 1, "The kill was not noticed");
        ensure!(report.verified_blocks > 0, "Nothing was verified after the kill");
        self.check_image()?;
        let detail = format!(
            "{} requests, no error, {} blocks right; the guest waited {:.0} ms",
            report.operations, report.verified_blocks, report.outages_ms[0]
        );
        passed("killed with -9 and back", detail);
        Ok(())
    }

    /// Reads the image without the daemon: every block is whole, or zeros.
    fn check_image(&self) -> Result<()> {
        let (pattern, mut block) = (Pattern::new(SEED, BLOCK as usize), [0; BLOCK as usize]);
        let mut image = std::io::BufReader::with_capacity(1 << 20, File::open(self.daemon.image())?);
        for number in 0..self.blocks() {
            image.read_exact(&mut block)?;
            let good = pattern.generation_of(&block).is_some() || block.iter().all(|&byte| byte == 0);
            ensure!(good, "The image is torn at byte {}", number * BLOCK);
        }
        Ok(())
    }

    /// An attached but idle disk costs no CPU time.
    pub fn idle(&mut self) -> Result<()> {
        const WATCH: Duration = Duration::from_secs(2);
        let (disk, queues) = Disk::attach(self.daemon.socket(), &Setup::default())?;
        std::thread::sleep(Duration::from_millis(300));
        let pid = self.daemon.pid()?;
        let before = cpu::process_cpu_time(pid)?;
        std::thread::sleep(WATCH);
        let used = cpu::process_cpu_time(pid)? - before;
        let memory = cpu::resident_bytes(pid)?;
        disk.detach(queues)?;
        // A hundredth of a tick of 10 ms: one stray wake-up is not a poll loop.
        ensure!(used < Duration::from_millis(1), "The idle daemon used {used:?} of CPU time in {WATCH:?}");
        let detail = format!(
            "{} us of CPU time in {} s, {:.1} MiB resident",
            used.as_micros(),
            WATCH.as_secs(),
            mib(memory)
        );
        passed("idle", detail);
        Ok(())
    }

    /// A taste of the speed; not a benchmark.
    pub fn speed(&mut self) -> Result<()> {
        // No holes: reading one is not reading a disk.
        self.run("filling the disk", &self.whole_disk())?;
        let base = self.load(Mix::Randread);
        let timing = Timing { warmup: Duration::from_millis(200), ..base.timing.clone() };
        let base = Load { numjobs: 1, timing, ..base };
        let interrupts = RingOptions { interrupt: true, ..base.rings.clone() };
        let loads = [
            ("4 KiB random reads, depth 32, driver polls", base.clone()),
            (
                "4 KiB random reads, depth 32, driver sleeps",
                Load { rings: interrupts.clone(), ..base.clone() },
            ),
            ("4 KiB random reads, depth 1, driver polls", Load { iodepth: 1, ..base.clone() }),
            ("4 KiB random writes, depth 32, driver polls", Load { rw: Mix::Randwrite, ..base.clone() }),
            (
                "128 KiB reads, depth 8, driver polls",
                Load { rw: Mix::Read, bs: 128 << 10, iodepth: 8, ..base },
            ),
        ];
        for (name, load) in loads {
            let report = self.run(name, &load)?;
            self.speeds.push((name.to_owned(), report));
        }
        Ok(())
    }

    /// SIGTERM ends the daemon at once, and the image is whole without it.
    pub fn stop(&mut self) -> Result<()> {
        let took = self.daemon.stop()?;
        ensure!(took < Duration::from_secs(1), "The daemon took {took:?} to end");
        passed("stopped", format!("exit code 0 after {} ms", took.as_millis()));
        Ok(())
    }

    /// The table, and what to try next.
    pub fn finish(&self) {
        println!(
            "\n{:<46}{:>10}{:>12}{:>12}{:>12}{:>14}",
            "on this machine", "IOPS", "MB/s", "p50 us", "p99 us", "CPU us/req"
        );
        for (name, report) in &self.speeds {
            println!(
                "{name:<46}{:>10}{:>12.0}{:>12.1}{:>12.1}{:>14}",
                show_rate(report.iops),
                report.mb_per_second,
                report.latency.p50_us,
                report.latency.p99_us,
                report.cpu_us_per_op.map_or("-".to_owned(), |cpu| format!("{cpu:.2}")),
            );
        }
        println!("\n{NEXT}");
    }

    fn run(&mut self, name: &str, load: &Load) -> Result<Report> {
        let bar = self.bar(name);
        let result = blk::run(self.daemon.socket(), load, &mut |state| progress::show(&bar, state, "IOPS"));
        bar.finish_and_clear();
        result.with_context(|| format!("{name}\n{}", self.daemon.output()))?.unless_wrong()
    }

    fn bar(&self, name: &str) -> indicatif::ProgressBar {
        let bar = progress::load(self.options.quiet);
        bar.set_prefix(format!("{name} "));
        bar
    }

    /// Writes every block once, however long that takes.
    fn whole_disk(&self) -> Load {
        let requests = Some(self.blocks() / u64::from(QUEUES));
        let base = self.load(Mix::Write);
        let timing = Timing { runtime: Duration::from_secs(600), ..base.timing.clone() };
        Load { pace: Pace { requests, ..Pace::default() }, timing, ..base }
    }

    fn blocks(&self) -> u64 {
        self.options.size / BLOCK
    }

    fn load(&self, rw: Mix) -> Load {
        let base = Load::default();
        let timing = Timing { runtime: self.options.runtime, ..base.timing.clone() };
        Load { rw, bs: BLOCK, numjobs: QUEUES, timing, seed: SEED, ..base }
    }
}

fn passed(what: &str, detail: String) {
    println!("  ok  {what:<24}{detail}");
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

const NEXT: &str = "\
Try it with a guest:

  truncate -s 10G disk.img
  vhostd-blk --socket-path /tmp/disk.sock --blk-file disk.img &
  qemu-system-x86_64 -machine q35,memory-backend=mem -m 2G \\
    -object memory-backend-memfd,id=mem,size=2G,share=on \\
    -chardev socket,id=disk,path=/tmp/disk.sock,reconnect=1 \\
    -device vhost-user-blk-pci,chardev=disk ...
QEMU from 9.2 on takes reconnect-ms=1000 instead of reconnect=1.";
