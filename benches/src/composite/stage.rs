//! One run: fresh daemons, a submitter that is attached to them, both phases with their CPU times.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use compress_protocol::Format;
use memory::OwnMemory;

use super::options::Options;
use super::submitter::{Lanes, Submitter};
use super::table::{Phase, Run};
use super::way::{Codec, Offload, Way};
use crate::blk::client::{Disk, Setup as DiskSetup};
use crate::compress::client::{Compressor, Setup as CompressorSetup};
use crate::compress::foreign::Zlib;
use crate::compress::material::{Material, Outputs};
use crate::cpu;
use crate::guest::Shape;
use crate::guest::memory::of_guest;
use crate::process::Process;

/// Bytes that the disk lets pass at once after a pause: little beside the data set.
const BURST: u64 = 1 << 20;

/// The programs under test.
pub(super) struct Daemons {
    pub blk: PathBuf,
    pub compress: PathBuf,
}

/// The daemons of one run.
struct Running {
    folder: tempfile::TempDir,
    blk: Process,
    compress: Option<Process>,
}

impl Running {
    fn start(options: &Options, daemons: &Daemons, way: Way, bandwidth: u32) -> Result<Self> {
        let folder = tempfile::tempdir().context("Cannot create a temporary folder")?;
        let cpus = &options.backend_cpus;
        let socket = folder.path().join(Self::DISK);
        let size = (options.records() as u64 * options.record).next_multiple_of(1 << 20);
        let words = [
            daemons.blk.display().to_string(),
            format!("--socket-path={}", socket.display()),
            format!("--blk-file=mem:{size}"),
            format!("--bandwidth={}:{BURST}", u64::from(bandwidth) * 1_000_000),
            "--workers=1".to_owned(),
            format!("--cpus={cpus}"),
        ];
        let mut blk = Process::start(&words, &cpus.0)?;
        blk.wait_for_socket(&socket)?;
        let mut compress = None;
        if way == Way::Offload {
            let socket = folder.path().join(Self::COMPRESSOR);
            let mut words = vec![
                daemons.compress.display().to_string(),
                format!("--socket-path={}", socket.display()),
                "--workers=1".to_owned(),
                format!("--cpus={cpus}"),
            ];
            words.extend(options.compress_options.split_whitespace().map(str::to_owned));
            let process = compress.insert(Process::start(&words, &cpus.0)?);
            process.wait_for_socket(&socket)?;
        }
        Ok(Self { folder, blk, compress })
    }

    const DISK: &'static str = "disk.sock";
    const COMPRESSOR: &'static str = "compress.sock";

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&self) -> String {
        let compress = self.compress.as_ref().map(Process::output).unwrap_or_default();
        format!("{}{compress}", self.blk.output())
    }

    /// CPU time of both daemons so far.
    fn cpu(&self) -> Result<[Duration; 2]> {
        let blk = cpu::process_cpu_time(self.blk.pid())?;
        let compress = self.compress.as_ref().map(|process| cpu::process_cpu_time(process.pid()));
        Ok([blk, compress.transpose()?.unwrap_or_default()])
    }
}

/// Writes and reads the data set on one way.
pub(super) fn run(
    options: &Options,
    daemons: &Daemons,
    material: &Material,
    way: Way,
    bandwidth: u32,
) -> Result<Run> {
    let running = Running::start(options, daemons, way, bandwidth)?;
    let (disk, compressor) = (running.socket(Running::DISK), running.socket(Running::COMPRESSOR));
    let body = || {
        cpu::pin_current_thread(&options.driver_cpus.0)?;
        let sockets = Sockets { disk: &disk, compressor: &compressor };
        submit(options, sockets, material, way, &|| running.cpu())
    };
    let result = std::thread::scope(|scope| scope.spawn(body).join());
    result.map_err(|_| anyhow!("The submitter panicked"))?.with_context(|| running.output())
}

/// Where the devices are.
#[derive(Clone, Copy, Debug)]
pub struct Sockets<'a> {
    /// The disk.
    pub disk: &'a Path,
    /// The compression device; only one way needs it.
    pub compressor: &'a Path,
}

/// Tells the CPU time that disk and compression device have used so far.
pub type Meter<'a> = &'a dyn Fn() -> Result<[Duration; 2]>;

/// Attaches the calling thread to its devices, writes the data set and reads it back.
pub fn submit(
    options: &Options,
    sockets: Sockets<'_>,
    material: &Material,
    way: Way,
    meter: Meter<'_>,
) -> Result<Run> {
    let (record, depth) = (options.record as usize, options.depth);
    let shape = Shape { indirect: true, ..Shape::default() };
    let disk_setup = DiskSetup { depth, block: 512, shape, ..DiskSetup::default() };
    let setup = CompressorSetup { queues: 1, depth, descriptors: 4, features: 0, shape };
    let lanes = 2 * Outputs::footprint(depth, record);
    let memory = of_guest(disk_setup.footprint() + setup.footprint() + material.footprint() + lanes)?;
    let (disk, mut disks) = Disk::attach_in(sockets.disk, &disk_setup, Arc::clone(&memory))?;
    let (device, codec) = codec(options, sockets, way, &setup, &memory)?;
    let inputs = material.place(&memory)?;
    let lanes =
        Lanes { stored: Outputs::new(&memory, depth, record)?, plain: Outputs::new(&memory, depth, record)? };
    let queue = disks.pop().context("The disk has no queue")?;
    let mut submitter = Submitter::new(queue, codec, material, &inputs, lanes, options.records());
    let write = timed(meter, || submitter.write()).context("Writing")?;
    let read = timed(meter, || submitter.read()).context("Reading back")?;
    let (stored, bytes) = (submitter.stored(), options.records() as u64 * options.record);
    let (queue, codec) = submitter.into_queues();
    disk.detach(vec![queue])?;
    if let (Some(device), Codec::Offload(offload)) = (device, codec) {
        device.detach(vec![offload.queue])?;
    }
    Ok(Run { bytes, stored, write, read })
}

/// Who compresses, attached where that is a device.
fn codec(
    options: &Options,
    sockets: Sockets<'_>,
    way: Way,
    setup: &CompressorSetup,
    memory: &Arc<OwnMemory>,
) -> Result<(Option<Compressor>, Codec)> {
    /// What a program links and takes without being told more.
    const SOFTWARE: (Format, i32) = (Format::Gzip, 1);
    Ok(match way {
        Way::None => (None, Codec::None),
        Way::Software => (None, Codec::Software(Box::new(Zlib::new(SOFTWARE.0, SOFTWARE.1)?))),
        Way::Offload => {
            let (device, mut queues) = Compressor::attach_in(sockets.compressor, setup, Arc::clone(memory))?;
            let queue = queues.pop().context("The compression device has no queue")?;
            let offload = Offload::new(queue, options.format, options.level);
            (Some(device), Codec::Offload(Box::new(offload)))
        }
    })
}

/// One phase with what it took.
fn timed(meter: Meter<'_>, phase: impl FnOnce() -> Result<()>) -> Result<Phase> {
    let before = meter()?;
    let (begin, own) = (Instant::now(), cpu::thread_cpu_time()?);
    phase()?;
    let (seconds, own) = (begin.elapsed().as_secs_f64(), cpu::thread_cpu_time()? - own);
    let after = meter()?;
    let used = |device: usize| after[device].saturating_sub(before[device]).as_secs_f64();
    Ok(Phase { seconds, submitter_cpu: own.as_secs_f64(), disk_cpu: used(0), compress_cpu: used(1) })
}
