//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use guest_driver::compress::{Format, Options, Place};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  vhostd-guest compress notes.txt            makes notes.txt.gz and removes notes.txt
  vhostd-guest compress -k --format zstd *   keeps the files, makes .zst
  tar c src | vhostd-guest compress -c > src.tar.gz
  vhostd-guest decompress src.tar.gz         makes src.tar
  vhostd-guest decompress -c data.lz4 | wc
  vhostd-guest info                          shows the device
  vhostd-guest bench data                    measures the device and software beside it

gzip -d, zstd -d and lz4 -d read what this makes, and this reads what they make. Without a device the work is done in
software, and a line says so.

Exit codes: 0 done, 1 an error, 2 a warning, as gzip's.";

/// Compresses files as gzip does, on the guest's compression device.
#[derive(Debug, Parser)]
#[command(name = "vhostd-guest", version, styles = STYLES, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub device: Device,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compress files: each is replaced by one with .gz (.zst, .lz4, .zz) behind its name
    #[command(
        visible_alias = "c",
        after_help = "With no FILE, or when FILE is -, read standard input and write standard output."
    )]
    Compress(Compress),
    /// Decompress files of gzip, zlib, zstd or lz4, whoever made them
    #[command(
        visible_alias = "d",
        after_help = "With no FILE, or when FILE is -, read standard input and write standard output."
    )]
    Decompress(Decompress),
    /// Measure how fast the device compresses and decompresses a file, and software beside it
    Bench(Bench),
    /// Show the device, what it can do, and whether it works
    Info(Info),
}

/// Options of all commands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct Device {
    /// The device: `auto` (the first on PCI), a PCI address (00:05.0), a path (a vhost-user socket), `none` (software)
    #[arg(long, value_name = "WHICH", default_value = "auto", value_parser = place, global = true)]
    pub device: Place,
    /// The virtio device id that compression devices have here
    #[arg(long, value_name = "ID", default_value_t = guest_driver::compress::DEVICE_ID, global = true)]
    pub virtio_id: u16,
    /// It is an error when there is no device
    #[arg(long, global = true)]
    pub require_device: bool,
    /// Bytes a request, at most; each is a part of the result that can be decompressed by itself
    #[arg(long, value_name = "SIZE", default_value = "256K", value_parser = size, global = true)]
    pub chunk: usize,
    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256), global = true)]
    pub depth: u16,
    /// Queues to spread them over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), global = true)]
    pub queues: u16,
    /// Split rings, even if the device has packed ones
    #[arg(long, global = true)]
    pub split: bool,
    /// A request that takes longer is done in software
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=600_000), global = true)]
    pub deadline_ms: u64,
}

impl Device {
    /// What the library is told.
    pub fn options(&self) -> Options {
        Options {
            place: self.device.clone(),
            device_id: self.virtio_id,
            max_size: self.chunk,
            depth: self.depth,
            queues: self.queues,
            packed: !self.split,
            deadline: Duration::from_millis(self.deadline_ms),
            ..Options::default()
        }
    }
}

#[derive(Debug, Args)]
pub struct Compress {
    #[command(flatten)]
    pub manners: Manners,
    /// Format of the result
    #[arg(long, short = 'F', value_enum, default_value_t = FormatName::Gzip)]
    pub format: FormatName,
    /// Decompress, as the command of that name does
    #[arg(short, long, conflicts_with_all = ["format", "verify"])]
    pub decompress: bool,
    #[command(flatten)]
    pub level: Level,
    /// Have every result decompressed again and compared before it is taken
    #[arg(long)]
    pub verify: bool,
    /// Do not save the file's name and time in the result (gzip)
    #[arg(short, long)]
    pub no_name: bool,
}

#[derive(Debug, Args)]
pub struct Decompress {
    #[command(flatten)]
    pub manners: Manners,
    /// Check that files are intact; write nothing
    #[arg(short, long)]
    pub test: bool,
    /// Do not look what the files are: they are of this format
    #[arg(long, short = 'F', value_enum)]
    pub format: Option<FormatName>,
    /// Accepted for gzip's sake: the name in a file is never used
    #[arg(short, long)]
    pub no_name: bool,
    /// Accepted for gzip's sake
    #[arg(short, long, hide = true)]
    pub decompress: bool,
}

/// How files are treated.
#[derive(Debug, Args)]
pub struct Manners {
    /// Files
    #[arg(value_name = "FILE")]
    pub files: Vec<OsString>,
    /// Write to standard output, and keep the files
    #[arg(short = 'c', long, visible_alias = "to-stdout")]
    pub stdout: bool,
    /// Keep the files
    #[arg(short, long)]
    pub keep: bool,
    /// Overwrite what is there, follow links, write to a terminal
    #[arg(short, long)]
    pub force: bool,
    /// No warnings, no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Say what was done
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// A file to compress, of which up to 64 MiB are used
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Format
    #[arg(long, short = 'F', value_enum, default_value_t = FormatName::Gzip)]
    pub format: FormatName,
    #[command(flatten)]
    pub level: Level,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub seconds: f64,
}

#[derive(Debug, Args)]
pub struct Info {
    /// Try the ciphers of a virtio-crypto device instead
    #[arg(long)]
    pub crypto: bool,
    /// Take the crypto device from the kernel's driver, whose users lose it
    #[arg(long, requires = "crypto")]
    pub take: bool,
}

/// Formats, as people call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// .gz
    Gzip,
    /// .zz
    Zlib,
    /// .zst
    Zstd,
    /// .lz4
    Lz4,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Gzip => Self::Gzip,
            FormatName::Zlib => Self::Zlib,
            FormatName::Zstd => Self::Zstd,
            FormatName::Lz4 => Self::Lz4Frame,
        }
    }
}

/// -1 to -9, and --level for formats that have others. The last one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level(pub i32);

const DIGITS: [(&str, char); 9] = [
    ("1", '1'),
    ("2", '2'),
    ("3", '3'),
    ("4", '4'),
    ("5", '5'),
    ("6", '6'),
    ("7", '7'),
    ("8", '8'),
    ("9", '9'),
];

impl Args for Level {
    fn augment_args(command: clap::Command) -> clap::Command {
        let number = Arg::new("level")
            .long("level")
            .value_name("N")
            .help("Compression level: -1 (fast) to -9 (small); zstd takes -7 to 19 [default: the format's]")
            .value_parser(clap::value_parser!(i32).range(-64..=22))
            .allow_negative_numbers(true);
        let fast = Arg::new("fast").long("fast").help("The same as -1").action(ArgAction::SetTrue);
        let best = Arg::new("best").long("best").help("The same as -9").action(ArgAction::SetTrue);
        let digit = |(id, short): (&'static str, char)| {
            Arg::new(id).short(short).hide(true).action(ArgAction::SetTrue)
        };
        command.args([number, fast, best]).args(DIGITS.map(digit))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Level {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |id: &str| {
            let named = matches.value_source(id) == Some(ValueSource::CommandLine);
            named.then(|| matches.indices_of(id).and_then(Iterator::last)).flatten()
        };
        let number = matches.get_one::<i32>("level").copied();
        let mut all = vec![(given("level"), number.unwrap_or(0)), (given("fast"), 1), (given("best"), 9)];
        all.extend(DIGITS.iter().zip(1..).map(|((id, _), level)| (given(id), level)));
        let last = all.into_iter().filter_map(|(index, level)| Some((index?, level))).max();
        Ok(Self(last.map_or(0, |(_, level)| level)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A number of bytes: 65536, 64K, 1M.
fn size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    let value = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(1 << shift));
    match value {
        Some(bytes @ 1024..=0x40_0000) => Ok(bytes),
        _ => Err("from 1K to 4M".into()),
    }
}

/// Where a device is.
fn place(text: &str) -> Result<Place, String> {
    match text {
        "auto" => Ok(Place::Any),
        "none" => Ok(Place::Nowhere),
        path if path.contains('/') => Ok(Place::Socket(path.into())),
        address if address.contains(':') => Ok(Place::Pci(address.to_owned())),
        _ => Err("auto, none, a PCI address like 00:05.0, or a path with a / in it".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn level(args: &[&str]) -> i32 {
        let cli = Cli::parse_from([&["vhostd-guest", "compress"], args].concat());
        match cli.command {
            Command::Compress(compress) => compress.level.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_last_level_counts() {
        assert_eq!(level(&["x"]), 0);
        assert_eq!(level(&["-9", "x"]), 9);
        assert_eq!(level(&["-9", "-1"]), 1);
        assert_eq!(level(&["--best", "--level", "-5"]), -5);
        assert_eq!(level(&["--level", "19", "-ck3"]), 3);
    }

    #[test]
    fn the_device_is_named_before_or_behind_the_command() {
        for args in [&["--device", "none", "info"], &["info", "--device", "none"]] {
            let cli = Cli::parse_from([&["vhostd-guest"], &args[..]].concat());
            assert_eq!(cli.device.device, Place::Nowhere);
        }
    }

    #[test]
    fn devices_are_named_by_what_they_look_like() {
        assert_eq!(place("auto"), Ok(Place::Any));
        assert_eq!(place("none"), Ok(Place::Nowhere));
        assert_eq!(place("0000:00:05.0"), Ok(Place::Pci("0000:00:05.0".into())));
        assert_eq!(place("./vcomp.sock"), Ok(Place::Socket("./vcomp.sock".into())));
        assert!(place("vcomp").is_err());
        assert_eq!((size("64K"), size("1M"), size("65536")), (Ok(65536), Ok(1 << 20), Ok(65536)));
        assert!(size("100").is_err() && size("5M").is_err() && size("").is_err());
    }
}
