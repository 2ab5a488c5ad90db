//! The rule's numbers as the user writes them: options on the command line, the table `[scheduling]` of the configuration
//! file, or parameters of `mode.set`. All have the same keys.

use daemon::cli::PollPreset;
use daemon::control::{RpcError, params};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// How the mode `heuristic` is to poll, as `mode.set` may change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spin {
    /// Longest spin in microseconds.
    pub max_us: Option<u32>,
    /// How the window grows and shrinks.
    pub preset: Option<PollPreset>,
}

/// Reads the parameters of `mode.set`: those of [`Spin`], and keys of a description made by
/// [`scheduling_spec!`](crate::scheduling_spec).
pub fn mode_set<S: DeserializeOwned>(mut value: Value) -> Result<(S, Spin), RpcError> {
    let mut spin = Map::new();
    if let Some(given) = value.as_object_mut() {
        spin.extend(["max-us", "preset"].into_iter().filter_map(|key| given.remove_entry(key)));
    }
    Ok((params(value)?, params(spin.into())?))
}

/// Defines how requests are collected, as the user writes it: the structure with the keys that all offload daemons have, and the
/// given ones. `inline_bytes` is the default of that key, for the help.
///
/// It is a group of `clap` arguments and a table of a configuration file. (The common keys in a structure of their own would
/// need serde's `flatten`, which loses the names of the keys and where a wrong one stands.)
#[macro_export]
macro_rules! scheduling_spec {
    (
        inline_bytes: $inline_bytes:literal;
        $(#[$about:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$about_key:meta])* $key_visibility:vis $key:ident: Option<$type:ty>,)*
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq, ::serde::Deserialize, ::clap::Args)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        #[command(next_help_heading = "Scheduling")]
        $(#[$about])*
        $visibility struct $name {
            /// How workers wait for requests and results: interrupt, timer=PERIOD, heuristic or busy [default: heuristic]
            ///
            /// interrupt sleeps until the guest kicks: least CPU time. timer=100us looks at the queues every 100 microseconds
            /// while there is work, and asks for no kicks meanwhile. heuristic polls for as long as it has paid lately, at most
            /// --poll-max-us, then sleeps. busy never sleeps: one whole CPU a worker. `vhostctl mode` changes it while running.
            #[arg(long, value_name = "MODE")]
            #[serde(deserialize_with = "::daemon::cli::from_text")]
            pub mode: Option<$crate::flush::Mode>,

            /// Requests of a full batch, which is submitted at once, 1 to 1024 [default: 64]
            ///
            /// A batch also goes as soon as every queue is empty, since everybody then waits for an answer.
            #[arg(long, value_name = "N")]
            pub batch: Option<u16>,

            /// Longest time a request waits for others to fill its batch, in microseconds, 1 to 1000000 [default: 50]
            ///
            /// It matters only while the guest submits without a pause and batches do not fill.
            #[arg(long, value_name = "US")]
            pub deadline_us: Option<u32>,

            /// Requests of at most so many bytes are computed at once, without a batch.
            #[arg(long, value_name = "BYTES", help = concat!(
                "Requests of at most so many bytes are computed at once, without a batch, 0 to 64K [default: ",
                $inline_bytes, "]"
            ))]
            pub inline_bytes: Option<::daemon::cli::ByteSize>,

            $($(#[$about_key])* $key_visibility $key: Option<$type>,)*
        }

        impl $name {
            /// What is set here, and `other`'s where nothing is.
            pub fn or(&self, other: &Self) -> Self {
                Self {
                    mode: self.mode.or(other.mode),
                    batch: self.batch.or(other.batch),
                    deadline_us: self.deadline_us.or(other.deadline_us),
                    inline_bytes: self.inline_bytes.or(other.inline_bytes),
                    $($key: self.$key.or(other.$key),)*
                }
            }

            /// What of the rule is to be different.
            pub fn flush(&self) -> $crate::parameters::Change {
                $crate::parameters::Change {
                    mode: self.mode,
                    batch: self.batch,
                    deadline_us: self.deadline_us,
                    inline_bytes: self.inline_bytes.map(::daemon::cli::ByteSize::clamped),
                    ..Default::default()
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flush::{Mode, Policy};
    use clap::Parser;
    use serde_json::json;

    scheduling_spec! {
        inline_bytes: "1K";
        /// How a daemon with engines called by a number collects.
        struct Scheduling {
            /// Number of the engine
            #[arg(long)]
            engine: Option<u8>,
        }
    }

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        scheduling: Scheduling,
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let text = "mode = 'timer=100us'\nbatch = 16\ndeadline-us = 20\ninline-bytes = '2K'\nengine = 3";
        let file: Scheduling = toml::from_str(text).unwrap();
        let Program { scheduling } = Program::parse_from(["p", "--mode", "busy", "--batch", "32"]);
        let together = scheduling.or(&file);
        let Policy { mode, thresholds } = together.flush().of(Policy::default());
        assert_eq!((mode, thresholds.batch, together.engine), (Mode::Busy, 32, Some(3)));
        assert_eq!((thresholds.deadline_us, thresholds.inline_bytes), (20, 2048));
        assert_eq!(Scheduling::default().flush().of(Policy::default()), Policy::default());
    }

    #[test]
    fn a_mode_that_there_is_not_is_refused_with_those_there_are() {
        for wrong in ["mode = 'fast'", "mode = 'timer'", "mode = 'timer=100'", "mode = 'timer=2s'"] {
            let error = toml::from_str::<Scheduling>(wrong).unwrap_err().to_string();
            assert!(error.contains("interrupt") && error.contains("heuristic"), "{error}");
        }
    }

    #[test]
    fn the_help_names_the_default_of_the_daemon() {
        let command = <Program as clap::CommandFactory>::command();
        let argument = command.get_arguments().find(|argument| argument.get_long() == Some("inline-bytes"));
        let help = argument.unwrap().get_help().unwrap().to_string();
        assert!(help.ends_with("0 to 64K [default: 1K]"), "{help}");
    }

    #[test]
    fn mode_set_takes_keys_of_the_file_and_how_heuristic_polls() {
        let (spec, spin) =
            mode_set::<Scheduling>(json!({"batch": 8, "max-us": 10, "preset": "kvm"})).unwrap();
        assert_eq!((spec.batch, spin), (Some(8), Spin { max_us: Some(10), preset: Some(PollPreset::Kvm) }));
        assert_eq!(mode_set::<Scheduling>(Value::Null).unwrap(), Default::default());
        for wrong in [json!({"colour": 1}), json!({"max-us": "x"}), json!({"preset": "y"}), json!([1])] {
            assert!(mode_set::<Scheduling>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
