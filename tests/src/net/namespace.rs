//! Network namespaces of this machine: a place for TAPs, veth pairs and daemons that touches no interface outside.
//!
//! A namespace has no name. It lives as long as a child that waits for its standard input to end, so it is gone with the
//! test, however that ends, and with it every interface in it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::bed;
use crate::net::host::Host;
use crate::process::{signal_group, wait_until};

/// A network namespace.
pub struct Namespace {
    holder: Child,
    // Ended before the holder and the directory.
    background: Vec<Background>,
    scratch: TempDir,
}

/// A script in a process group of its own, so that its pipelines end with it.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = signal_group(self.0.id(), libc::SIGKILL);
        let _ = self.0.wait();
    }
}

impl Namespace {
    /// A new one, with its loopback up.
    ///
    /// # Errors
    /// When a program is missing, or this process may not make one (it needs CAP_SYS_ADMIN).
    pub fn new() -> Result<Self> {
        let mut command = Command::new(bed::program("unshare")?);
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let holder = command.spawn().context("Cannot start unshare")?;
        let mut namespace = Self { holder, background: Vec::new(), scratch: tempfile::tempdir()? };
        namespace.wait_entered()?;
        namespace.run("ip link set lo up")?;
        Ok(namespace)
    }

    /// A command that runs `program` in here.
    ///
    /// # Errors
    /// When `nsenter` is not installed.
    pub fn command(&self, program: &str) -> Result<Command> {
        enter(self.pid(), Path::new(program))
    }

    /// Joins this one and `other` by a veth pair.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn veth(&mut self, name: &str, other: &Namespace, other_name: &str) -> Result<()> {
        let peer = other.pid();
        self.run(&format!("ip link add {name} type veth peer name {other_name} netns {peer}"))?;
        Ok(())
    }

    /// Takes an interface over from `other`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn take(&self, name: &str, other: &mut Namespace) -> Result<()> {
        other.run(&format!("ip link set {name} netns {}", self.pid()))?;
        Ok(())
    }

    /// A process in here, by which it can be named.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// The child is in the new namespace once it runs what it was started for.
    fn wait_entered(&mut self) -> Result<()> {
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        let theirs = format!("/proc/{}/ns/net", self.pid());
        let entered = wait_until(Duration::from_secs(10), || {
            if let Some(status) = self.holder.try_wait()? {
                bail!("Cannot make a network namespace ({status}); the network tests need root");
            }
            Ok(std::fs::read_link(&theirs).is_ok_and(|found| found != ours))
        })?;
        ensure!(entered, "unshare does not enter a network namespace");
        Ok(())
    }
}

/// A command that runs `program` in the network namespace of the process `pid`.
///
/// # Errors
/// When `nsenter` is not installed.
pub fn enter(pid: u32, program: &Path) -> Result<Command> {
    let mut command = Command::new(bed::program("nsenter")?);
    command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(program);
    Ok(command)
}

impl Host for Namespace {
    fn sh_for(&mut self, script: &str, timeout: Duration) -> Result<String> {
        let mut command = self.command("timeout")?;
        command.arg(timeout.as_secs().max(1).to_string()).args(["sh", "-c", script]).stdin(Stdio::null());
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} from: {script}\n{stdout}{stderr}", output.status);
        Ok(stdout)
    }

    fn background(&mut self, script: &str) -> Result<()> {
        let mut command = self.command("sh")?;
        command.args(["-c", script]).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.background.push(Background(command.spawn()?));
        Ok(())
    }

    fn scratch(&self) -> String {
        self.scratch.path().display().to_string()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.background.clear();
        // It has nothing else to do, so either may fail only when it is gone already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
