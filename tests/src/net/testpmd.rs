//! DPDK's testpmd: `virtio-user` ports, a vhost-user frontend nobody here wrote.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::namespace::Namespace;
use crate::bed;
use crate::process::{Process, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// What testpmd is started with.
pub struct Builder {
    dir: PathBuf,
    devices: Vec<String>,
    eal: Vec<String>,
    options: Vec<String>,
}

/// A running testpmd.
pub struct Testpmd {
    process: Process,
}

impl Builder {
    /// Adds a device: `net_virtio_user0,path=...`.
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// An option of the environment: `--force-max-simd-bitwidth=512`.
    pub fn eal(mut self, option: &str) -> Self {
        self.eal.push(option.to_owned());
        self
    }

    /// An option of testpmd itself: `--forward-mode=macswap`.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// Starts it; it forwards when this returns.
    ///
    /// # Errors
    /// When it is not installed, or ends; with what it printed.
    pub fn start(self) -> Result<Testpmd> {
        self.launch(Command::new(bed::program("stdbuf")?))
    }

    /// The same in a network namespace, where its interfaces appear.
    ///
    /// # Errors
    /// As for [`Builder::start`].
    pub fn start_in(self, namespace: &Namespace) -> Result<Testpmd> {
        self.launch(namespace.command("stdbuf")?)
    }

    fn launch(self, mut command: Command) -> Result<Testpmd> {
        // Or its output would come in blocks.
        command.arg("-oL").arg(bed::program("dpdk-testpmd")?);
        // Where it keeps its files; shared ones are not needed, but made all the same.
        command.env("RUNTIME_DIRECTORY", &self.dir);
        // Both threads may run on either processor, whatever else runs there.
        command.args(["--lcores", "0@0-1,1@0-1", "--no-huge", "-m", "256", "--no-pci", "--no-telemetry"]);
        command.args(["--log-level", "pmd.net.virtio.init:info"]).args(&self.eal);
        self.devices.iter().for_each(|device| {
            command.args(["--vdev", device]);
        });
        command
            .args(["--", "--no-mlockall", "--disable-link-check", "--auto-start", "--total-num-mbufs=8192"])
            .args(&self.options);
        let process = Process::start_held(command, &self.dir.join("testpmd.log"))?;
        let mut testpmd = Testpmd { process };
        testpmd.wait_for("Press enter to exit")?;
        Ok(testpmd)
    }
}

impl Testpmd {
    /// Keeps its files in `dir`.
    pub fn builder(dir: &Path) -> Builder {
        Builder { dir: dir.to_owned(), devices: Vec::new(), eal: Vec::new(), options: Vec::new() }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it ends, or does not print it in time.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let printed = wait_until(PATIENCE, || {
            self.process.must_run()?;
            Ok(self.process.output().contains(text))
        })?;
        ensure!(printed, "testpmd has not printed `{text}`:\n{}", self.process.output());
        Ok(())
    }

    /// Which functions a port receives and sends with, as the driver says: `split ring mergeable`, for instance.
    ///
    /// # Errors
    /// When it does not say.
    pub fn paths(&self, port: usize) -> Result<Vec<String>> {
        let output = self.process.output();
        let suffix = format!(" path on port {port}");
        let paths: Vec<String> = output
            .lines()
            .filter_map(|line| line.strip_suffix(suffix.as_str()))
            .filter_map(|line| Some(line.split_once("using ")?.1.to_owned()))
            .collect();
        paths.first().with_context(|| format!("testpmd names no path of port {port}:\n{output}"))?;
        Ok(paths)
    }
}
