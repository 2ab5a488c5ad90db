//! Runs the example daemon as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use daemon::control::client::Client;
use serde_json::Value;

/// More than any step takes on a loaded machine.
pub const LONG: Duration = Duration::from_secs(20);

/// The built example, beside this test in the target directory.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a path of this test");
    let path = test.parent().and_then(Path::parent).expect("target directory").join("examples/toy");
    assert!(
        path.exists(),
        "{} is missing: run `cargo test -p daemon` or build the examples first",
        path.display()
    );
    path
}

/// Runs the example until it ends by itself.
pub fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).stdin(Stdio::null()).output().expect("toy runs")
}

/// A running example daemon with its sockets in a directory of their own.
pub struct Toy {
    child: Child,
    pub dir: tempfile::TempDir,
    log: Arc<Mutex<String>>,
}

impl Toy {
    /// Starts with `--socket-path s`, `--control-socket c` and more arguments, and waits until it answers.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(program());
        command.arg("--socket-path").arg(dir.path().join("s"));
        Self::start_as(command, dir, args)
    }

    /// Starts `command` with `--control-socket c` and more arguments.
    pub fn start_as(mut command: Command, dir: tempfile::TempDir, args: &[&str]) -> Self {
        command.arg("--control-socket").arg(dir.path().join("c")).args(args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("toy starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, lines) = (child.stderr.take().expect("a pipe"), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let toy = Self { child, dir, log };
        // The socket takes connections before the sandbox closes; an answer means that everything runs.
        toy.wait_for("answer", || toy.call("version", Value::Null).is_ok());
        toy
    }

    /// Its control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    /// Its vhost-user socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls one method on a connection of its own.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, String> {
        let mut client = Client::connect(&self.control(), LONG).map_err(|error| error.to_string())?;
        client.call(method, params).map_err(|error| error.to_string())
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        assert!(
            Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap().success()
        );
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + LONG;
        loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => return status,
                None if Instant::now() > end => panic!("toy does not end; it said:\n{}", self.log()),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until `condition` holds.
    pub fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + LONG;
        while !condition() {
            assert!(Instant::now() < end, "no {what}; toy said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A line of `/proc/PID/status`.
    pub fn proc_status(&self, key: &str) -> String {
        let mut text = String::new();
        let mut file = std::fs::File::open(format!("/proc/{}/status", self.pid())).expect("a process");
        file.read_to_string(&mut text).expect("its status");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
