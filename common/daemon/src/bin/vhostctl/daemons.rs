//! Which daemons a command is for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::Failure;
use daemon::control::client::{CallError, Client};
use serde_json::Value;

use crate::args::Args;

/// One daemon that answers.
pub struct Daemon {
    /// Its control socket.
    pub path: PathBuf,
    client: Client,
}

impl Daemon {
    fn connect(path: &Path, timeout: Duration) -> Result<Self, Failure> {
        let failed =
            |error| Failure::runtime(format!("Control socket {} cannot be reached: {error}", path.display()));
        let client = Client::connect(path, timeout).map_err(failed)?;
        Ok(Self { path: path.to_owned(), client })
    }

    /// Calls one method.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value, Failure> {
        self.client.call(method, parameters).map_err(|error| match error {
            CallError::Rpc(error) => Failure::runtime(error.message),
            error => Failure::runtime(format!("{}: {error}", self.path.display())),
        })
    }

    /// The daemon's own method for a verb, and what it calls its devices: `disk.add` and `disk` for `add`. Only methods whose
    /// first parameter is the device count, which is `id` for a new one: `mac.add` adds no device.
    pub fn method(&mut self, verb: &str) -> Result<(String, String), Failure> {
        let methods = self.call("methods", Value::Null)?;
        let on_device = |method: &Value| {
            let (kind, last) = method["name"].as_str()?.rsplit_once('.')?;
            let first = method["params"].as_str()?.trim_start_matches('{').split([':', '?']).next()?;
            (last == verb && (first == kind || first == "id")).then(|| kind.to_owned())
        };
        let found = methods.as_array().into_iter().flatten().find_map(on_device);
        let missing =
            || Failure::runtime(format!("The daemon at {} has no method to {verb}", self.path.display()));
        found.map(|kind| (format!("{kind}.{verb}"), kind)).ok_or_else(missing)
    }
}

/// All daemons of the command line, or all that can be found.
pub fn all(args: &Args) -> Result<Vec<Daemon>, Failure> {
    if !args.socket.is_empty() {
        return args.socket.iter().map(|path| Daemon::connect(path, args.timeout())).collect();
    }
    let directory = run_directory();
    let attempts = candidates(&directory).into_iter().map(|path| Daemon::connect(&path, args.timeout()));
    let (answering, silent): (Vec<_>, Vec<_>) = attempts.partition(Result::is_ok);
    if answering.is_empty() {
        let nobody = || {
            let message = format!("No daemon answers in {}", directory.display());
            Failure::runtime(message).hint("name a control socket with --socket")
        };
        return Err(silent.into_iter().find_map(Result::err).unwrap_or_else(nobody));
    }
    Ok(answering.into_iter().flatten().collect())
}

/// The daemons a change is for: those of the command line, or the only one there is.
pub fn to_change(args: &Args) -> Result<Vec<Daemon>, Failure> {
    let daemons = all(args)?;
    if args.socket.is_empty() && daemons.len() > 1 {
        let paths: Vec<_> = daemons.iter().map(|daemon| daemon.path.display().to_string()).collect();
        let message = format!("{} daemons are running and none is named", daemons.len());
        return Err(Failure::usage(message).hint(format!("name one with --socket: {}", paths.join(", "))));
    }
    Ok(daemons)
}

fn run_directory() -> PathBuf {
    std::env::var_os("VHOSTD_RUN_DIR").map_or_else(|| "/run/vhostd".into(), PathBuf::from)
}

/// Files named `*.sock`, in the order of their names.
fn candidates(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    paths.sort();
    paths
}
