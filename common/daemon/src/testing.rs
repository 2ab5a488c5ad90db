//! A daemon as a process of its own, for the tests of device crates.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::control::client::Client;
use crate::stats::{Device, Snapshot};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon with a control socket; killed when dropped.
pub struct Daemon {
    /// The process.
    pub child: Child,
    dir: PathBuf,
}

impl Daemon {
    /// Starts `program` in `dir`, so that sockets may have bare names, and waits until it is ready.
    pub fn start(program: &str, dir: &Path, args: &[&str]) -> Self {
        Self::start_command(Command::new(program), dir, args)
    }

    /// The same by a command that ends up as the daemon, such as one of a shell.
    pub fn start_command(mut command: Command, dir: &Path, args: &[&str]) -> Self {
        command.current_dir(dir).args(["--control-socket", "control"]).args(args).stderr(Stdio::inherit());
        let mut daemon = Self { child: command.spawn().expect("the daemon starts"), dir: dir.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while daemon.try_call("version", Value::Null).is_none() {
            assert!(Instant::now() < deadline, "the daemon does not answer");
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// A file of the directory it was started in.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Connects to a socket of that directory.
    pub fn connect(&self, socket: &str) -> UnixStream {
        UnixStream::connect(self.path(socket)).unwrap()
    }

    /// One call, if the daemon answers at all.
    pub fn try_call(&self, method: &str, params: Value) -> Option<Value> {
        let client = Client::connect(&self.path("control"), PATIENCE);
        client.ok()?.call(method, params).ok()
    }

    /// One call on the control socket.
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.ask(method, params).unwrap()
    }

    /// One call that is refused, and the sentence that says why.
    pub fn refused(&self, method: &str, params: Value) -> String {
        self.ask(method, params).expect_err("refused")
    }

    /// One call, and the sentence if it is refused.
    pub fn ask(&self, method: &str, params: Value) -> Result<Value, String> {
        let mut client = Client::connect(&self.path("control"), PATIENCE).unwrap();
        client.call(method, params).map_err(|error| error.to_string())
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        serde_json::from_value(self.call("stats", Value::Null)).unwrap()
    }

    /// Counters of one device.
    pub fn stats(&self, device: &str) -> Device {
        self.snapshot().devices.into_iter().find(|each| each.name == device).unwrap()
    }

    /// What is shown at `--metrics unix:SOCKET`.
    pub fn scrape(&self, socket: &str) -> String {
        let mut stream = self.connect(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// SIGKILL to the process that does the work under `--supervise`, and to nobody else.
    pub fn kill_worker(&self) {
        let pid = self.call("version", Value::Null)["pid"].to_string();
        assert_ne!(pid, self.child.id().to_string(), "the keeper is another process");
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns the exit code and how long it took.
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
        let code = self.child.wait().unwrap().code();
        (code, start.elapsed())
    }

    /// CPU time in clock ticks.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration file with all keys that were commented out, and without any other comment; lines stay where they are.
pub fn uncommented(text: &str) -> String {
    let line = |line: &str| {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let key = bare.split_once(" = ").map_or("", |(key, _)| key);
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        if bare.starts_with('[') || is_key { format!("{bare}\n") } else { "\n".to_owned() }
    };
    text.lines().map(line).collect()
}

/// Runs `program` to its end, which must come soon.
pub fn run(program: &str, dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{args:?} is served");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// Runs `program` with arguments that it must refuse: in one line on standard error that begins with its name and has these
/// words, with exit code 2, and without a socket in `dir` left behind.
pub fn refuses(program: &str, dir: &Path, args: &[&str], words: &str) {
    let before = sockets(dir);
    let output = run(program, dir, args);
    let text = String::from_utf8(output.stderr).unwrap();
    let name = program.rsplit('/').next().unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(text.starts_with(&format!("{name}: ")), "{args:?}: {text}");
    assert!(text.contains(words), "{args:?} should say '{words}': {text}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    assert_eq!(sockets(dir), before, "{args:?} left a socket behind");
}

fn sockets(dir: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut sockets: Vec<_> =
        entries.filter(|entry| entry.file_type().unwrap().is_socket()).map(|entry| entry.path()).collect();
    sockets.sort();
    sockets
}
