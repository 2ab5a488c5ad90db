//! The specification of a comparison: which backends, which loads, which aims.
//!
//! ```toml
//! title = "Block, null backend"
//! runtime = "3"
//!
//! [backend.ours]
//! command = "{bin}/vhostd-blk --socket-path {socket} --blk null:64g --poll always"
//!
//! [backend.qsd]
//! command = "qemu-storage-daemon ..."
//! package = "qemu-system-common"
//!
//! [[row]]
//! name = "QD32 polled"
//! ours = "ours"
//! peer = "qsd"
//! load = "--rw randread --iodepth 32 --poll"
//! figures = [{ of = "iops", aim = 1.2 }, { of = "cpu", aim = 1.0 }]
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::driver::{Driver, Load};
pub use super::figure::Figure;
use crate::units::{parse_duration, parse_size};

/// A whole specification file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Headline of the tables.
    pub title: String,
    /// How many times both sides run (A B A B ...).
    #[serde(default = "default_rounds")]
    pub rounds: u32,
    /// Measured time of one run.
    #[serde(default = "default_runtime", deserialize_with = "duration")]
    pub runtime: Duration,
    /// Time before the measurement of each run.
    #[serde(default = "default_warmup", deserialize_with = "duration")]
    pub warmup: Duration,
    /// CPUs of the driver's threads.
    #[serde(default = "default_driver_cpus")]
    pub driver_cpus: Vec<usize>,
    /// CPUs of the backend.
    #[serde(default = "default_backend_cpus")]
    pub backend_cpus: Vec<usize>,
    /// Driver and backend are meant to share CPUs.
    #[serde(default)]
    pub shares_cpus: bool,
    /// The disk image that `{file}` stands for, where a command needs one.
    pub file: Option<FileSpec>,
    /// Commands that make what the backends need (network interfaces), run once before the first row.
    #[serde(default)]
    pub setup: Vec<String>,
    /// Commands that take it away again, run in the end whatever happened.
    #[serde(default)]
    pub teardown: Vec<String>,
    /// Backends by name.
    pub backend: BTreeMap<String, BackendSpec>,
    /// What is compared.
    #[serde(rename = "row")]
    pub rows: Vec<RowSpec>,
}

/// The disk image used by both sides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Bytes; written once with random data, and so into the page cache.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

/// One program under test.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Command line; words are separated by blanks, placeholders are replaced inside words.
    pub command: String,
    /// Debian package that has the program, named when it is missing.
    pub package: Option<String>,
    /// How the figures are obtained.
    #[serde(default)]
    pub kind: Kind,
    /// Commands to run once the backend listens (`ip link set tap0 up`).
    #[serde(default)]
    pub ready: Vec<String>,
}

/// Where the figures of a side come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A vhost-user backend: a driver of ours puts the load on it.
    #[default]
    #[serde(alias = "vhost-user-blk")]
    VhostUser,
    /// testpmd as a vhost-user backend: the same, and its prompt is asked for busy cycles.
    Testpmd,
    /// fio itself, run to its end; its JSON output is read.
    Fio,
    /// `vhostd-bench crypto --engine-alone` or `compress --engine-alone`, given the load of the row and run to its end on the
    /// CPUs of the backend; its JSON output is read.
    Engine,
    /// The same on the CPUs of the driver: what whoever submits could do by itself.
    Submitter,
}

/// One load on two backends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSpec {
    /// Name in the tables.
    pub name: String,
    /// Name of our backend.
    pub ours: String,
    /// Name of the peer's backend.
    pub peer: String,
    /// What puts the load on the backends.
    #[serde(default)]
    pub driver: Driver,
    /// Options of the driver's own command, without sockets, runtime, warm-up and CPUs.
    pub load: String,
    /// A different load for the peer (scaling rows compare one queue with two).
    pub peer_load: Option<String>,
    /// What is compared, each with its aim.
    pub figures: Vec<FigureSpec>,
}

/// One figure of a row.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FigureSpec {
    /// What is compared.
    pub of: Figure,
    /// Smallest ratio that counts as reached; above 1 is better for us, whatever the figure is. Without one the figure is
    /// only shown.
    pub aim: Option<f64>,
}

/// Why a specification was refused.
#[derive(Debug, thiserror::Error)]
pub enum BadSpec {
    /// Not TOML, an unknown key, a wrong type.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A row names a backend that does not exist.
    #[error("Row '{row}' names backend '{backend}', which the file does not have")]
    UnknownBackend {
        /// The row.
        row: String,
        /// The name.
        backend: String,
    },
    /// The options of a row are wrong.
    #[error("Row '{row}': {reason}")]
    Load {
        /// The row.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to do.
    #[error("There must be at least one round, one row and one figure a row")]
    Empty,
    /// A placeholder without a meaning here.
    #[error("Backend '{backend}' uses {{file}}, but the specification has no [file] section")]
    NoFile {
        /// The backend.
        backend: String,
    },
}

impl Spec {
    /// Reads and checks a specification.
    pub fn parse(text: &str) -> Result<Self, BadSpec> {
        let spec: Self = toml::from_str(text)?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), BadSpec> {
        if self.rounds == 0 || self.rows.is_empty() || self.rows.iter().any(|row| row.figures.is_empty()) {
            return Err(BadSpec::Empty);
        }
        for row in &self.rows {
            for backend in [&row.ours, &row.peer] {
                if !self.backend.contains_key(backend) {
                    let (row, backend) = (row.name.clone(), backend.clone());
                    return Err(BadSpec::UnknownBackend { row, backend });
                }
            }
            row.loads().iter().try_for_each(|text| row.parse(text).map(drop))?;
            if let Some(figure) = row.figures.iter().find(|figure| !figure.of.is_of(row.driver)) {
                let reason = format!("{} is no figure of this driver", figure.of.label());
                return Err(BadSpec::Load { row: row.name.clone(), reason });
            }
        }
        for (name, backend) in &self.backend {
            if self.file.is_none() && backend.command.contains("{file}") {
                return Err(BadSpec::NoFile { backend: name.clone() });
            }
        }
        Ok(())
    }
}

impl RowSpec {
    /// The options of the load on our side, and on the peer's.
    pub fn loads(&self) -> [&str; 2] {
        [&self.load, self.peer_load.as_ref().unwrap_or(&self.load)]
    }

    /// The load that options make.
    pub fn parse(&self, text: &str) -> Result<Load, BadSpec> {
        Load::parse(self.driver, text).map_err(|reason| BadSpec::Load { row: self.name.clone(), reason })
    }
}

fn default_rounds() -> u32 {
    5
}

fn default_runtime() -> Duration {
    Duration::from_secs(3)
}

fn default_warmup() -> Duration {
    Duration::from_millis(500)
}

fn default_driver_cpus() -> Vec<usize> {
    vec![0]
}

fn default_backend_cpus() -> Vec<usize> {
    vec![1]
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(D::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        title = "Null"
        runtime = "250ms"
        [backend.ours]
        command = "{bin}/vhostd-blk --socket-path {socket}"
        [backend.qsd]
        command = "qemu-storage-daemon {socket}"
        package = "qemu-system-common"
        [[row]]
        name = "QD32"
        ours = "ours"
        peer = "qsd"
        load = "--rw randread --iodepth 32"
        figures = [{ of = "iops", aim = 1.2 }, { of = "cpu", aim = 1.0 }]
    "#;

    #[test]
    fn a_good_specification_fills_in_the_defaults() {
        let spec = Spec::parse(GOOD).unwrap();
        assert_eq!((spec.rounds, spec.runtime), (5, Duration::from_millis(250)));
        assert_eq!((&spec.driver_cpus[..], &spec.backend_cpus[..]), (&[0][..], &[1][..]));
        assert_eq!(spec.backend["qsd"].package.as_deref(), Some("qemu-system-common"));
        assert_eq!(spec.backend["ours"].kind, Kind::VhostUser);
        let row = &spec.rows[0];
        let Load::Blk(load) = row.parse(row.loads()[1]).unwrap() else {
            panic!("the driver is no block driver")
        };
        assert_eq!(load.iodepth, 32);
        assert_eq!(spec.rows[0].figures[1].of, Figure::Cpu);
    }

    #[test]
    fn mistakes_are_refused_with_the_row_or_key_they_are_in() {
        for (from, to, part) in [
            ("peer = \"qsd\"", "peer = \"spdk\"", "Row 'QD32' names backend 'spdk'"),
            ("--iodepth 32", "--iodeth 32", "--iodeth"),
            ("--iodepth 32", "--iodepth 128", "need 384 descriptors"),
            ("title = ", "tilte = ", "tilte"),
            ("of = \"cpu\"", "of = \"watts\"", "watts"),
            ("of = \"cpu\"", "of = \"pps\"", "no figure of this driver"),
            ("load = ", "driver = \"net\"\n        load = ", "Row 'QD32'"),
            ("runtime = \"250ms\"", "rounds = 0", "at least one round"),
            ("runtime = \"250ms\"", "runtime = \"soon\"", "no duration"),
            ("{socket}\"\n        package", "{file}\"\n        package", "no [file] section"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from} does not occur");
            let error = Spec::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{to}: {error}");
        }
    }

    #[test]
    fn every_specification_in_the_repository_is_valid() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/specs");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            Spec::parse(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            count += 1;
        }
        assert!(count >= 5, "only {count} specifications found");
    }
}
