//! Children that die with the test, and what `/proc` says about them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running child. Killed on drop; what it printed is kept for error messages.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both output streams going to `log`, which is appended to.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: Command, log: &Path) -> Result<Self> {
        Self::start_with(command, log, Stdio::null())
    }

    /// The same for a program that ends when its standard input does, so that it does even if the test is killed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_held(command: Command, log: &Path) -> Result<Self> {
        Self::start_with(command, log, Stdio::piped())
    }

    fn start_with(mut command: Command, log: &Path, stdin: Stdio) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let program = Path::new(command.get_program());
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        command.stdin(stdin).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("Cannot start {name}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGKILL and reaps it.
    ///
    /// # Errors
    /// When it had ended before: the test expected it to be alive.
    pub fn kill(&mut self) -> Result<()> {
        self.must_run()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and waits; returns the status and how long the end took.
    ///
    /// # Errors
    /// When it has not ended after `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Result<(ExitStatus, Duration)> {
        self.must_run()?;
        let started = Instant::now();
        signal(self.pid(), libc::SIGTERM)?;
        let status = self.wait(timeout)?;
        Ok((status, started.elapsed()))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it has not ended after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let ended = wait_until(timeout, || Ok(self.child.try_wait()?.is_some()))?;
        if !ended {
            bail!("{} still runs after {timeout:?}", self.name);
        }
        Ok(self.child.wait()?)
    }

    /// An error with its output if it has ended.
    ///
    /// # Errors
    /// That one.
    pub fn must_run(&mut self) -> Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}):\n{}", self.name, self.output()),
        }
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// CPU time of all its threads so far, in clock ticks (10 ms).
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_ticks(&self) -> Result<u64> {
        ticks_of(&self.proc_file("stat")?)
    }

    /// The same with that of its children.
    ///
    /// # Errors
    /// When any has ended.
    pub fn tree_ticks(&self) -> Result<u64> {
        let children = self.children()?.into_iter().map(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat"));
            ticks_of(&stat.with_context(|| format!("A child of {} is gone", self.name))?)
        });
        children.sum::<Result<u64>>().and_then(|ticks| Ok(ticks + self.cpu_ticks()?))
    }

    /// Process ids of its children.
    ///
    /// # Errors
    /// When it has ended.
    pub fn children(&self) -> Result<Vec<u32>> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid()));
        let threads = threads.with_context(|| format!("{} is gone", self.name))?;
        let mut children = Vec::new();
        for thread in threads {
            let list = fs::read_to_string(thread?.path().join("children"))?;
            children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        Ok(children)
    }

    /// Resident memory in KiB, guest memory included.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        self.status_kib("VmRSS")
    }

    /// Resident memory in KiB without the guest's, which is shared memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn own_kib(&self) -> Result<u64> {
        Ok(self.status_kib("RssAnon")? + self.status_kib("RssFile")?)
    }

    fn status_kib(&self, name: &str) -> Result<u64> {
        let status = self.proc_file("status")?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(value.with_context(|| format!("No {name}"))?.trim().trim_end_matches("kB").trim().parse()?)
    }

    /// Number of open file descriptors.
    ///
    /// # Errors
    /// When it has ended.
    pub fn open_fds(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// A file of `/proc/PID`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn proc_file(&self, name: &str) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid()))
            .with_context(|| format!("{} is gone", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either may fail when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A test that fails by an error does not panic; with this variable every test shows what there is.
        if std::thread::panicking() || std::env::var_os("VHOSTD_SHOW_OUTPUT").is_some() {
            eprintln!("--- output of {}:\n{}", self.name, tail(&self.output(), 40));
        }
    }
}

/// Time in a process's `stat`.
fn ticks_of(stat: &str) -> Result<u64> {
    // Fields are counted after the command name, which may itself contain blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')').context("Malformed /proc/PID/stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // proc(5): utime and stime are fields 14 and 15; the first one here is field 3.
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Sends `signal` to a process by its id.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: i32) -> Result<()> {
    send(&pid.to_string(), signal)
}

/// Sends `signal` to a process group by the id of its first process.
///
/// # Errors
/// When there is no such group.
pub fn signal_group(leader: u32, signal: i32) -> Result<()> {
    send(&format!("-{leader}"), signal)
}

fn send(target: &str, signal: i32) -> Result<()> {
    let status = Command::new("kill").arg(format!("-{signal}")).args(["--", target]).status()?;
    if !status.success() {
        bail!("Cannot send signal {signal} to {target}");
    }
    Ok(())
}

/// Asks `condition` every few milliseconds until it holds or `timeout` has passed; returns whether it held.
///
/// # Errors
/// Those of `condition`.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        if condition()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The last `lines` lines.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
