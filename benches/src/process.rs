//! Programs under test: found, pinned, started, waited for, stopped.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{cpu, signal};

/// How long a backend may take until its socket listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend may take to end after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Values of the placeholders in a command line.
#[derive(Clone, Debug, Default)]
pub struct Placeholders(BTreeMap<&'static str, String>);

impl Placeholders {
    /// Sets `{name}`.
    pub fn set(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.0.insert(name, value.to_string());
        self
    }

    /// Splits `command` at blanks and replaces the placeholders inside the words.
    pub fn words(&self, command: &str) -> Vec<String> {
        let fill = |word: &str| {
            self.0
                .iter()
                .fold(word.to_owned(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
        };
        command.split_whitespace().map(fill).collect()
    }
}

/// The program of a command line, looked up as a shell would; `None` if it is not there.
pub fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return is_executable(Path::new(program)).then(|| PathBuf::from(program));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| is_executable(candidate))
}

/// A program of the suite that was built together with this one.
pub fn beside_me(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("Cannot find my own program file")?;
    let path = own.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is not there; build it with: cargo build --release, or use --daemon",
        path.display()
    );
    Ok(path)
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A running program; stopped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: std::fs::File,
    name: String,
}

impl Process {
    /// Starts `words` restricted to `cpus`, its output into an unnamed file.
    pub fn start(words: &[String], cpus: &[usize]) -> Result<Self> {
        Self::start_with(words, cpus, Stdio::null())
    }

    /// The same for a program that takes commands, see [`Process::tell`].
    pub fn start_console(words: &[String], cpus: &[usize]) -> Result<Self> {
        Self::start_with(words, cpus, Stdio::piped())
    }

    fn start_with(words: &[String], cpus: &[usize], stdin: Stdio) -> Result<Self> {
        let (program, arguments) = words.split_first().context("The command line is empty")?;
        let log = tempfile::tempfile().context("Cannot create a log file")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(stdin);
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        let child = spawn_pinned(&mut command, cpus).with_context(|| format!("Cannot start {program}"))?;
        Ok(Self { child, log, name: program.clone() })
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until `socket` is listening; an error if the program ends before.
    pub fn wait_for_socket(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !is_listening(socket) {
            if let Some(status) = self.child.try_wait()? {
                let output = self.output();
                bail!("{} ended with {status} before its socket listened:\n{output}", self.name);
            }
            if Instant::now() > deadline {
                let output = self.output();
                bail!(
                    "{} did not listen on {} within {START_LIMIT:?}:\n{output}",
                    self.name,
                    socket.display()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits for the program to end by itself; `false` if it does not.
    pub fn wait_at_most(&mut self, limit: Duration) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                _ => return true,
            }
        }
        false
    }

    /// SIGTERM, then SIGKILL for one that does not obey. Returns how it ended and how long that took.
    pub fn stop(&mut self) -> (Option<ExitStatus>, Duration) {
        let begin = Instant::now();
        let _ = signal::terminate(self.pid());
        while begin.elapsed() < STOP_LIMIT {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                ended => return (ended.ok().flatten(), begin.elapsed()),
            }
        }
        self.kill();
        (None, begin.elapsed())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Types a line into a program started by [`Process::start_console`].
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("The program takes no commands")?;
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .with_context(|| format!("{} is gone", self.name))
    }

    /// How much the program has printed so far.
    pub fn printed(&self) -> Result<u64> {
        Ok(self.log.metadata()?.len())
    }

    /// Waits until `done` likes what was printed from `mark` on, and returns that; an error if the program ends before.
    pub fn wait_for_output(
        &mut self,
        mark: u64,
        limit: Duration,
        done: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let text = self.output_from(mark);
            if done(&text) {
                return Ok(text);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.output());
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not answer within {limit:?}:\n{}",
                self.name,
                self.output()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The last part of what the program has printed.
    pub fn output(&self) -> String {
        const TAIL: u64 = 2000;
        self.output_from(self.printed().unwrap_or(0).saturating_sub(TAIL))
    }

    /// The file is read at an offset: the program writes at the position it shares with us.
    fn output_from(&self, mark: u64) -> String {
        let mut text = vec![0; self.printed().unwrap_or(0).saturating_sub(mark) as usize];
        let len = self.log.read_at(&mut text, mark).unwrap_or(0);
        String::from_utf8_lossy(&text[..len]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// Runs a program to its end, restricted to `cpus`; returns its standard output.
pub fn run_to_end(words: &[String], cpus: &[usize]) -> Result<String> {
    let (program, arguments) = words.split_first().context("The command line is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn_pinned(&mut command, cpus).with_context(|| format!("Cannot start {program}"))?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A child inherits the affinity of the thread that starts it, so a short-lived thread sets it.
fn spawn_pinned(command: &mut Command, cpus: &[usize]) -> std::io::Result<Child> {
    std::thread::scope(|scope| {
        let start = scope.spawn(|| {
            if !cpus.is_empty() {
                cpu::pin_current_thread(cpus)?;
            }
            command.spawn()
        });
        start.join().unwrap_or_else(|_| Err(std::io::Error::other("The starting thread panicked")))
    })
}

/// A Unix socket at `path` accepts connections, by the kernel's own list: connecting would disturb a backend that
/// takes one client only.
pub fn is_listening(path: &Path) -> bool {
    listening_inode(path).is_some()
}

/// The process that listens on the Unix socket at `path`, if it is visible from here.
pub fn listener_pid(path: &Path) -> Option<i32> {
    let wanted = PathBuf::from(format!("socket:[{}]", listening_inode(path)?));
    let holds = |pid: i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.any(|link| link == wanted).then_some(pid)
    };
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find_map(holds)
}

/// Inode of the socket that accepts connections at `path`, from the kernel's list of Unix sockets.
fn listening_inode(path: &Path) -> Option<String> {
    const ACCEPTING: &str = "00010000";
    let table = std::fs::read_to_string("/proc/net/unix").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, flags, _, _, inode, name] = fields[..] else { return None };
        (flags == ACCEPTING && Path::new(name) == path).then(|| inode.to_owned())
    })
}

/// Reads a file from end to end, so that it is in the page cache.
pub fn read_whole(path: &Path) -> std::io::Result<()> {
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_inside_words_and_words_stay_whole() {
        let mut places = Placeholders::default();
        places.set("socket", "/tmp/a b.sock").set("cpu", 1);
        let words = places.words("prog --export addr.path={socket},id={cpu}  --x {unknown}");
        assert_eq!(words, ["prog", "--export", "addr.path=/tmp/a b.sock,id=1", "--x", "{unknown}"]);
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(find_program("sh").is_some_and(|path| path.is_absolute()));
        assert!(find_program("/bin/sh").is_some());
        assert_eq!(find_program("no-such-program-here"), None);
        assert_eq!(find_program("/etc/passwd"), None);
    }

    #[test]
    fn a_started_program_runs_on_its_cpus_only() {
        let allowed = cpu::allowed_cpus().unwrap();
        let last = *allowed.last().unwrap();
        let words: Vec<String> =
            ["grep", "Cpus_allowed_list", "/proc/self/status"].map(String::from).to_vec();
        let output = run_to_end(&words, &[last]).unwrap();
        assert_eq!(output.split_whitespace().last(), Some(last.to_string().as_str()));
        assert_eq!(cpu::allowed_cpus().unwrap(), allowed);
    }

    #[test]
    fn a_program_that_ends_early_is_reported_with_its_output() {
        let words: Vec<String> = ["sh", "-c", "echo reason; exit 3"].map(String::from).to_vec();
        let mut process = Process::start(&words, &[]).unwrap();
        let error = process.wait_for_socket(Path::new("/nonexistent.sock")).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("reason"), "{error}");
    }

    #[test]
    fn a_bound_socket_counts_only_once_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        assert!(!is_listening(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path));
        drop(listener);
        assert!(!is_listening(&path));
    }

    #[test]
    fn stop_ends_a_program_that_obeys_at_once() {
        let words: Vec<String> = ["sleep", "100"].map(String::from).to_vec();
        let mut process = Process::start(&words, &[]).unwrap();
        let (status, took) = process.stop();
        assert!(status.is_some() && took < Duration::from_secs(2));
        assert!(cpu::process_cpu_time(process.pid()).is_err());
    }
}
