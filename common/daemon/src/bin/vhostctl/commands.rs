//! Commands that ask once and print the answer.

use std::io::{self, Write};

use daemon::Failure;
use daemon::stats::Snapshot;
use serde_json::{Map, Value, json};

use crate::args::{self, Args, Command};
use crate::daemons::{self, Daemon};
use crate::{Stop, show};

/// Runs any command but `top` and `completions`.
pub fn run(args: &Args, command: &Command) -> Result<(), Stop> {
    let changes = !matches!(command, Command::Status | Command::Stats | Command::Methods);
    let mut daemons = if changes { daemons::to_change(args)? } else { daemons::all(args)? };
    let several = daemons.len() > 1;
    let mut out = io::stdout().lock();
    for daemon in &mut daemons {
        let answer = ask(daemon, command)?;
        if args.json {
            writeln!(out, "{answer}")?;
            continue;
        }
        if several {
            writeln!(out, "{}:", daemon.path.display())?;
        }
        print(&mut out, command, &answer)?;
    }
    Ok(())
}

fn ask(daemon: &mut Daemon, command: &Command) -> Result<Value, Failure> {
    let (method, parameters) = request(daemon, command)?;
    daemon.call(&method, Value::Object(parameters))
}

/// The method and the parameters of a command; see `docs/control.md`.
fn request(daemon: &mut Daemon, command: &Command) -> Result<(String, Map<String, Value>), Failure> {
    let built_in = |name: &str, parameters| Ok((name.to_owned(), parameters));
    match command {
        Command::Status => built_in("status", Map::new()),
        Command::Stats => built_in("stats", Map::new()),
        Command::Methods => built_in("methods", Map::new()),
        Command::Shutdown => built_in("shutdown", Map::new()),
        Command::Drain { drain_ms } => built_in("drain", given([("timeout_ms", json!(drain_ms))])),
        Command::LogLevel { level } => built_in("log_level", given([("level", json!(level))])),
        Command::Call { method, parameters } => {
            built_in(method, parameters.as_ref().and_then(Value::as_object).cloned().unwrap_or_default())
        }
        Command::Add { parameters } => Ok((daemon.method("add")?.0, args::object(parameters))),
        Command::Remove { device } => on_device(daemon, "remove", device, Map::new()),
        Command::Resize { device, size } => {
            on_device(daemon, "resize", device, given([("size", json!(size))]))
        }
        Command::Limit { device, limits } => on_device(daemon, "limit", device, args::object(limits)),
        Command::Set { device, settings } => on_device(daemon, "set", device, args::object(settings)),
        Command::Poll { mode, max_us, preset } => {
            let parameters = [("poll", json!(mode)), ("max-us", json!(max_us)), ("preset", json!(preset))];
            built_in("poll.set", given(parameters))
        }
        Command::Mode { mode: None, settings } if settings.is_empty() => built_in("mode.get", Map::new()),
        Command::Mode { mode, settings } => {
            let mut parameters = args::object(settings);
            parameters.extend(given([("mode", json!(mode))]));
            built_in("mode.set", parameters)
        }
        Command::Top(_) | Command::Completions { .. } => {
            Err(Failure::usage("This command asks no daemon once"))
        }
    }
}

/// A method on one device: `disk.resize` takes the disk's name as its parameter `disk`.
fn on_device(
    daemon: &mut Daemon,
    verb: &str,
    device: &str,
    mut parameters: Map<String, Value>,
) -> Result<(String, Map<String, Value>), Failure> {
    let (method, kind) = daemon.method(verb)?;
    parameters.insert(kind, json!(device));
    Ok((method, parameters))
}

/// The parameters that have a value.
fn given<const N: usize>(parameters: [(&str, Value); N]) -> Map<String, Value> {
    let given = parameters.into_iter().filter(|(_, value)| !value.is_null());
    given.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn print(out: &mut impl Write, command: &Command, answer: &Value) -> Result<(), Stop> {
    match command {
        Command::Status => show::status(out, answer)?,
        Command::Stats => show::stats(out, &snapshot(answer.clone())?)?,
        Command::Methods => {
            for method in answer.as_array().into_iter().flatten() {
                let text = |key: &str| method[key].as_str().unwrap_or_default().to_owned();
                writeln!(out, "{} {}\n    {}", text("name"), text("params"), text("help"))?;
            }
        }
        Command::LogLevel { .. } => writeln!(out, "{}", answer["level"].as_str().unwrap_or("?"))?,
        Command::Call { .. } => writeln!(out, "{answer:#}")?,
        Command::Drain { .. } => return drained(out, answer),
        _ => show::outline(out, answer, 0)?,
    }
    Ok(())
}

/// A drain that did not finish is a failure, although the daemon answered.
fn drained(out: &mut impl Write, answer: &Value) -> Result<(), Stop> {
    let unfinished: Vec<_> =
        answer["unfinished"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if unfinished.is_empty() {
        return Ok(writeln!(out, "Drained")?);
    }
    Err(Failure::runtime(format!("Not drained in time: {}", unfinished.join(", "))).into())
}

/// The answer to `stats` as values.
pub fn snapshot(answer: Value) -> Result<Snapshot, Failure> {
    serde_json::from_value(answer)
        .map_err(|error| Failure::runtime(format!("The statistics are not readable: {error}")))
}
