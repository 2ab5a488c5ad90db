//! TOML files, with errors that say where and what instead.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer};

use crate::Failure;
use crate::cli::{
    Common, CpuList, Given, IoEngine, LogFormat, LogLevel, MOST_POLL_US, MetricsAddress, Poll, PollPreset,
    SandboxMode,
};

/// Longest configuration file: far above any real one, small enough to refuse a device node or an image given by mistake.
pub const MAX_LEN: u64 = 16 << 20;

/// Keys of a configuration file that every daemon has, in a table `[daemon]`; each is the argument of the same name,
/// and an argument wins.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// `--poll`
    pub poll: Option<Poll>,
    /// `--poll-max-us`
    #[serde(deserialize_with = "poll_max_us")]
    pub poll_max_us: Option<u32>,
    /// `--poll-preset`
    pub poll_preset: Option<PollPreset>,
    /// `--workers`
    pub workers: Option<NonZeroU16>,
    /// `--cpus`
    pub cpus: Option<CpuList>,
    /// `--io`
    pub io: Option<IoEngine>,
    /// `--control-socket`
    pub control_socket: Option<PathBuf>,
    /// `--metrics`
    pub metrics: Option<MetricsAddress>,
    /// `--log-level`
    pub log_level: Option<LogLevel>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `--sandbox`
    pub sandbox: Option<SandboxMode>,
    /// `--allow-path`; the file's and the command line's count together.
    pub allow_paths: Vec<PathBuf>,
}

/// The same range as on the command line.
fn poll_max_us<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let us = u32::deserialize(deserializer)?;
    if us > MOST_POLL_US {
        return Err(de::Error::custom(format!("{us} is more than {MOST_POLL_US} microseconds")));
    }
    Ok(Some(us))
}

impl AsRef<Settings> for Settings {
    fn as_ref(&self) -> &Settings {
        self
    }
}

impl Settings {
    /// Puts the file's values where the command line gave none.
    pub fn apply(&self, common: &mut Common, given: &Given) {
        let Common { workers, service, sandbox, .. } = common;
        fn set<T: Clone>(given: bool, to: &mut T, from: &Option<T>) {
            if !given && let Some(value) = from {
                *to = value.clone();
            }
        }
        set(given.has("poll"), &mut workers.poll, &self.poll);
        set(given.has("poll_max_us"), &mut workers.poll_max_us, &self.poll_max_us);
        set(given.has("poll_preset"), &mut workers.poll_preset, &self.poll_preset);
        set(given.has("workers"), &mut workers.workers, &self.workers.map(|n| Some(n.get())));
        set(given.has("cpus"), &mut workers.cpus, &self.cpus.clone().map(Some));
        set(given.has("io"), &mut workers.io, &self.io);
        set(given.has("control_socket"), &mut service.control_socket, &self.control_socket.clone().map(Some));
        set(given.has("metrics"), &mut service.metrics, &self.metrics.clone().map(Some));
        set(given.has("log_level"), &mut service.log_level, &self.log_level);
        set(given.has("log_format"), &mut service.log_format, &self.log_format);
        set(given.has("sandbox") || given.has("no_sandbox"), &mut sandbox.sandbox, &self.sandbox);
        sandbox.allow_paths.extend(self.allow_paths.iter().cloned());
    }
}

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("Configuration file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no regular file or far too long.
    #[error("Configuration file {path} is not a regular file of at most 16 MiB")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is not TOML, or a key or value in it is wrong.
    #[error("Configuration file {path}, line {line}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, naming the key and the valid keys.
        message: String,
    },
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::usage(error)
    }
}

/// Reads `T` from the file; `T` should be `#[serde(deny_unknown_fields)]`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = read(path)?;
    parse(&text, path)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let refused = |source| ConfigError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(refused)?;
    if !metadata.is_file() || metadata.len() > MAX_LEN {
        return Err(ConfigError::NotAFile { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(refused)
}

/// Reads `T` from text; `path` is only named in errors.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let span = error.span();
        let offset = span.as_ref().map_or(0, |span| span.start.min(text.len()));
        ConfigError::Parse {
            path: path.to_owned(),
            line: line_of(text, offset),
            message: sentence(&error, text, span),
        }
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
}

/// The parser's message on one line, with the key it is about when the message does not say it.
fn sentence(error: &toml::de::Error, text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let message = error.message().replace('\n', " ");
    let key = span.and_then(|span| key_before(text, span.start));
    match key {
        Some(key) if !message.contains(&format!("`{key}`")) => format!("key `{key}`: {message}"),
        _ => message,
    }
}

/// The bare key at the start of the line that holds `offset`, if it has the form `key = value`.
fn key_before(text: &str, offset: usize) -> Option<&str> {
    let start = text.get(..offset)?.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[start..].lines().next()?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!key.is_empty() && key.chars().all(bare)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ByteSize;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        disk: Vec<Disk>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Disk {
        name: String,
        size: ByteSize,
    }

    fn message(text: &str) -> String {
        parse::<File>(text, Path::new("/etc/vhostd.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_read() {
        let file: File = parse("[[disk]]\nname = 'a'\nsize = '1M'\n", Path::new("f")).unwrap();
        assert_eq!((file.disk[0].name.as_str(), file.disk[0].size), ("a", ByteSize(1 << 20)));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_keys_there_are() {
        let message = message("# disks\n[[disk]]\nname = 'a'\nsiez = 3\n");
        assert!(message.starts_with("Configuration file /etc/vhostd.toml, line 4: "), "{message}");
        assert!(
            message.contains("`siez`") && message.contains("`name`") && message.contains("`size`"),
            "{message}"
        );
    }

    #[test]
    fn a_bad_value_is_named_with_its_key() {
        let message = message("[[disk]]\nname = 'a'\nsize = '3 apples'\n");
        assert!(message.contains("line 3: key `size`: Size '3 apples'"), "{message}");
    }

    #[test]
    fn the_longest_spin_is_that_of_the_command_line() {
        let settings = |us: u32| toml::from_str::<Settings>(&format!("poll-max-us = {us}"));
        assert_eq!(settings(MOST_POLL_US).unwrap().poll_max_us, Some(MOST_POLL_US));
        assert!(settings(MOST_POLL_US + 1).unwrap_err().to_string().contains("1000001 is more than"));
        assert_eq!(toml::from_str::<Settings>("").unwrap().poll_max_us, None);
    }

    #[test]
    fn a_missing_key_and_broken_syntax_are_one_line() {
        for text in
            ["[[disk]]\nname = 'a'\n", "[[disk]\n", "disk = 3", "\u{0}", "[[disk]]\nname = 'a'\nname = 'b'"]
        {
            let message = message(text);
            assert!(!message.contains('\n') && message.contains(", line "), "{message}");
        }
        assert!(message("[[disk]]\nname = 'a'\n").contains("`size`"));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let missing = load::<File>(Path::new("/nonexistent/vhostd.toml")).unwrap_err();
        assert!(matches!(missing, ConfigError::Read { .. }));
        assert!(matches!(load::<File>(Path::new("/dev/zero")).unwrap_err(), ConfigError::NotAFile { .. }));
        assert!(matches!(load::<File>(Path::new("/")).unwrap_err(), ConfigError::NotAFile { .. }));
        assert_eq!(Failure::from(missing).code(), 2);
    }
}
