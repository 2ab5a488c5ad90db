//! The daemon of the demo and its disk image.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::Process;

/// Queues of the demo's disk.
pub const QUEUES: u16 = 2;

/// vhostd-blk on a temporary disk image.
pub struct Daemon {
    program: PathBuf,
    socket: PathBuf,
    image: PathBuf,
    process: Option<Process>,
}

impl Daemon {
    /// Creates an empty image of `size` bytes in `folder`; starts nothing yet.
    pub fn new(program: PathBuf, folder: &Path, size: u64) -> Result<Self> {
        let image = folder.join("demo.img");
        let file = File::create(&image).with_context(|| format!("Cannot create {}", image.display()))?;
        file.set_len(size).context("Cannot size the disk image")?;
        Ok(Self { program, socket: folder.join("demo.sock"), image, process: None })
    }

    /// The daemon's command line.
    pub fn words(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let queues = QUEUES.to_string();
        let options =
            ["--socket-path", &text(&self.socket), "--blk-file", &text(&self.image), "--num-queues", &queues];
        std::iter::once(text(&self.program)).chain(options.map(String::from)).collect()
    }

    /// Starts the daemon and waits until it listens; returns how long that took.
    pub fn start(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let mut process = Process::start(&self.words(), &[])?;
        process.wait_for_socket(&self.socket)?;
        self.process = Some(process);
        Ok(begin.elapsed())
    }

    /// SIGKILL: no drain, no goodbye.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM; an error unless it exits with 0. Returns how long that took.
    pub fn stop(&mut self) -> Result<Duration> {
        let mut process = self.process.take().context("The daemon is not running")?;
        let (status, took) = process.stop();
        let ended_well = status.is_some_and(|status| status.success());
        ensure!(
            ended_well,
            "The daemon did not exit with 0 after SIGTERM ({status:?}):\n{}",
            process.output()
        );
        Ok(took)
    }

    /// The daemon is running.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its process id.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.process.as_ref().context("The daemon is not running")?.pid())
    }

    /// What it has printed.
    pub fn output(&mut self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its disk image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Bytes the image occupies on the host's disk.
    pub fn allocated(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.image)?.blocks() * 512)
    }
}
