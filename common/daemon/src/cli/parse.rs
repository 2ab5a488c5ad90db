//! `clap`'s errors as one sentence and a hint.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;

use crate::Failure;

/// Which arguments the user wrote, by field name: these win over the configuration file, defaults do not.
#[derive(Clone, Debug, Default)]
pub struct Given(BTreeSet<String>);

impl Given {
    /// Whether this argument was written on the command line.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains(field)
    }
}

/// Parses the process's arguments; prints help and version itself, and then there is nothing to run (`Ok(None)`).
pub fn parse<A: Parser>() -> Result<Option<(A, Given)>, Failure> {
    parse_from(std::env::args_os())
}

/// [`parse`] with given arguments, the program's name first.
pub fn parse_from<A: Parser>(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Option<(A, Given)>, Failure> {
    match try_parse::<A>(args) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed pipe (`--help | head`) is no reason to fail.
            let _ = error.print();
            Ok(None)
        }
        Err(error) => Err(failure(&error, A::command().get_name())),
    }
}

fn try_parse<A: Parser>(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> clap::error::Result<(A, Given)> {
    let matches = A::command().try_get_matches_from(args)?;
    let given = matches
        .ids()
        .filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine))
        .map(|id| id.as_str().to_owned())
        .collect();
    Ok((A::from_arg_matches(&matches)?, Given(given)))
}

/// The first paragraph of clap's text is the sentence; its tips and where to read more become the hint.
fn failure(error: &clap::Error, program: &str) -> Failure {
    let text = error.render().to_string();
    let sentence = text.split("\n\n").next().unwrap_or_default();
    let sentence = sentence.trim_start_matches("error: ").trim().trim_end_matches('.');
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let more = format!("try '{program} --help'");
    let hint = tip.map_or(more.clone(), |tip| format!("{tip}; {more}"));
    Failure::usage(capitalized(sentence)).hint(hint)
}

fn capitalized(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::{ByteSize, Common, IoEngine, Poll, PollPreset, SandboxMode, SocketMode};

    #[derive(Parser, Debug)]
    #[command(name = "vhostd-test")]
    struct Cli {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        size: Option<ByteSize>,
    }

    fn run(args: &[&str]) -> Result<Cli, Failure> {
        let parsed = parse_from(std::iter::once(&"vhostd-test").chain(args))?;
        Ok(parsed.expect("no help was asked for").0)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_adaptive_confined_and_private() {
        let common = run(&[]).unwrap().common;
        assert_eq!(common.workers.poll, Poll::Adaptive);
        assert_eq!(common.workers.poll_preset, PollPreset::Kvm);
        assert_eq!(common.workers.io, IoEngine::Auto);
        assert_eq!(common.sandbox.mode(), SandboxMode::Enforce);
        assert_eq!(common.endpoint.socket_mode, SocketMode(0o600));
    }

    #[test]
    fn only_what_was_written_counts_as_given() {
        let args = ["vhostd-test", "--poll", "off"];
        let (_, given) = parse_from::<Cli>(args).unwrap().unwrap();
        assert!(given.has("poll") && !given.has("poll_max_us") && !given.has("workers"));
    }

    #[test]
    fn sandbox_has_two_spellings_of_off() {
        let mode = |args: &[&str]| run(args).unwrap().common.sandbox.mode();
        assert_eq!(mode(&["--no-sandbox"]), SandboxMode::Off);
        assert_eq!(mode(&["--sandbox", "off"]), SandboxMode::Off);
        assert_eq!(mode(&["--sandbox", "log"]), SandboxMode::Log);
        assert!(run(&["--no-sandbox", "--sandbox", "log"]).is_err());
    }

    #[test]
    fn every_bad_argument_is_one_sentence_with_a_hint() {
        let cases: &[&[&str]] = &[
            &["--sockt-path", "a"],
            &["stray"],
            &["--fd", "2"],
            &["--fd", "x"],
            &["--fd", "3", "--socket-path", "a"],
            &["--connect", "b", "--socket-path", "a"],
            &["--poll", "sometimes"],
            &["--poll-max-us", "1000001"],
            &["--poll-max-us", "-1"],
            &["--workers", "0"],
            &["--cpus", "3-1"],
            &["--socket-mode", "9"],
            &["--socket-group", "no such group"],
            &["--metrics", "nowhere"],
            &["--log-level", "loud"],
            &["--log-format", "xml"],
            &["--size", "1X"],
            &["--size"],
        ];
        for args in cases {
            let failure = run(args).expect_err(&format!("{args:?}"));
            assert_eq!(failure.code(), 2, "{args:?}");
            let message = failure.message();
            assert!(!message.contains('\n') && message.len() > 10 && message.len() < 250, "{message}");
            assert!(message.starts_with(char::is_uppercase), "{message}");
        }
    }

    #[test]
    fn sentences_name_the_argument_and_what_is_wrong() {
        let message = |args: &[&str]| run(args).unwrap_err().message().to_owned();
        assert_eq!(message(&["--sockt-path", "a"]), "Unexpected argument '--sockt-path' found");
        let size = message(&["--size", "1X"]);
        assert!(size.contains("--size") && size.contains("such as 512M"), "{size}");
        let poll = message(&["--poll", "sometimes"]);
        assert!(poll.contains("--poll") && poll.contains("adaptive"), "{poll}");
    }
}
