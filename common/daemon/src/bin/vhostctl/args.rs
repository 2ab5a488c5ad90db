//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use daemon::cli::{ByteSize, LogLevel, Poll, PollPreset};
use serde_json::{Map, Value};

/// Watch and steer running vhostd daemons
///
/// Talks to the control sockets of daemons (`--control-socket`). Without --socket it finds those in /run/vhostd; a
/// command that changes something then needs exactly one daemon to be there.
#[derive(Parser, Debug)]
#[command(name = "vhostctl", version, after_help = EXAMPLES)]
pub struct Args {
    /// Control socket of a daemon; repeatable
    ///
    /// Default: every socket named /run/vhostd/*.sock that answers. The directory is $VHOSTD_RUN_DIR if that is set.
    #[arg(long, short, value_name = "PATH", global = true)]
    pub socket: Vec<PathBuf>,

    /// Print JSON, one document a daemon (one a line for `top`)
    #[arg(long, global = true)]
    pub json: bool,

    /// How long to wait for an answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000, global = true,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    timeout_ms: u64,

    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vhostctl status
  vhostctl top
  vhostctl --socket /run/vhostd/blk.sock add \\
           id=vol1 path=/var/lib/vhostd/vol1.img socket=/run/vhostd/vm/vol1
  vhostctl resize vol1 20G
  vhostctl limit vol1 iops=5000 bandwidth=200M
  vhostctl set web vlan=10 anti-spoof=true
  vhostctl mode timer=100us --set batch=32
  vhostctl --json stats | jq '.devices[0].operations.read.requests'

Exit codes: 0 done, 1 a daemon did not answer or refused, 2 the command line is wrong.";

impl Args {
    /// How long to wait for an answer: longer than the daemon itself waits for I/O in flight.
    pub fn timeout(&self) -> Duration {
        let drain_ms = match self.command {
            Command::Remove { .. } => REMOVE_MS,
            Command::Drain { drain_ms } => drain_ms.unwrap_or(0),
            _ => 0,
        };
        Duration::from_millis(self.timeout_ms.max(drain_ms.saturating_add(1000)))
    }
}

/// Longest time a daemon waits for a device it removes.
const REMOVE_MS: u64 = 10_000;

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// State of the daemons, their sessions and devices
    Status,
    /// Counters since the daemons started
    Stats,
    /// Live rates: requests, bytes, latency, kicks and interrupts per request, CPU time
    Top(Top),
    /// Add a device
    ///
    /// The parameters are the keys of a device's table in the configuration file.
    Add {
        /// Parameters, such as id=vol1 path=/var/lib/images/vol1.img socket=/run/vm1/vol1.sock
        #[arg(required = true, value_name = "KEY=VALUE")]
        parameters: Vec<Parameter>,
    },
    /// Remove a device, after what is in flight has finished
    Remove {
        /// Name of the device
        device: String,
    },
    /// Change the size of a disk, and tell the guest
    Resize {
        /// Name of the device
        device: String,
        /// New size, such as 20G; without it, the size the file or block device has by now
        size: Option<ByteSize>,
    },
    /// Limit a device's rates; 0 removes a limit
    Limit {
        /// Name of the device
        device: String,
        /// Limits, such as iops=5000 bandwidth=200M read-iops=1000
        #[arg(required = true, value_name = "KEY=VALUE")]
        limits: Vec<Parameter>,
    },
    /// Change settings of a device, such as a port's VLAN or link
    Set {
        /// Name of the device
        device: String,
        /// Settings, such as vlan=10 link=down tx-bps=1G
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<Parameter>,
    },
    /// Show or change when workers spin instead of sleeping
    Poll {
        /// When to spin
        #[arg(value_enum)]
        mode: Option<Poll>,
        /// Longest time to spin, in microseconds
        #[arg(long, value_name = "US")]
        max_us: Option<u32>,
        /// How the adaptive window grows and shrinks
        #[arg(long, value_enum, value_name = "NAME")]
        preset: Option<PollPreset>,
    },
    /// Show or change how an offload daemon (crypto, compression) waits for requests, and when it submits them
    Mode {
        /// interrupt, timer=PERIOD such as timer=100us, heuristic or busy
        mode: Option<String>,
        /// Another setting, such as batch=32 or deadline-us=20; repeatable
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<Parameter>,
    },
    /// Show or change how much is logged
    LogLevel {
        /// New level
        #[arg(value_enum)]
        level: Option<LogLevel>,
    },
    /// End all sessions and finish what is in flight; the process stays for inspection
    Drain {
        /// How long to wait for what is in flight, in milliseconds
        #[arg(long, value_name = "MS")]
        drain_ms: Option<u64>,
    },
    /// Drain and end the daemon, as SIGTERM does
    Shutdown,
    /// List the methods a daemon answers
    Methods,
    /// Call any method
    Call {
        /// Name of the method
        method: String,
        /// Parameters, a JSON object
        #[arg(value_name = "JSON", value_parser = json_object)]
        parameters: Option<Value>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How `top` shows rates.
#[derive(clap::Args, Debug)]
pub struct Top {
    /// Time between two samples, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=3_600_000))]
    pub interval_ms: u64,
    /// End after this many samples
    #[arg(long, short = 'n', value_name = "N")]
    pub count: Option<u64>,
    /// Print lines even on a terminal
    #[arg(long)]
    pub lines: bool,
}

/// One `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    key: String,
    value: Value,
}

impl FromStr for Parameter {
    type Err = String;

    /// Numbers and booleans are sent as such, everything else as text.
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
        if key.is_empty() {
            return Err(format!("'{text}' has no key"));
        }
        let parsed =
            serde_json::from_str(value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
        Ok(Self { key: key.to_owned(), value: parsed.unwrap_or_else(|| Value::from(value)) })
    }
}

/// The object that some `KEY=VALUE` make.
pub fn object(parameters: &[Parameter]) -> Map<String, Value> {
    parameters.iter().map(|parameter| (parameter.key.clone(), parameter.value.clone())).collect()
}

fn json_object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("Parameters are a JSON object".to_owned()),
        Err(error) => Err(format!("Parameters are not JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn parameters_keep_the_type_they_are_written_in() {
        let given = ["id=007x", "queues=4", "read-only=true", "path=/a=b", "serial=", "x=null", "y=[1]"];
        let parameters: Vec<Parameter> = given.iter().map(|text| text.parse().unwrap()).collect();
        let expected = json!({
            "id": "007x", "queues": 4, "read-only": true, "path": "/a=b", "serial": "", "x": "null", "y": "[1]",
        });
        assert_eq!(Value::Object(object(&parameters)), expected);
    }

    #[test]
    fn parameters_without_key_or_value_are_refused() {
        assert!("plain".parse::<Parameter>().is_err());
        assert!("=value".parse::<Parameter>().is_err());
    }

    #[test]
    fn raw_parameters_are_an_object() {
        assert_eq!(json_object(r#"{"a":1}"#), Ok(json!({"a": 1})));
        assert!(json_object("[1]").is_err() && json_object("{").is_err());
    }
}
