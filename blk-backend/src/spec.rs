//! A disk as the user writes it: options on the command line, a table `[[disk]]` in the configuration file, a
//! list `--disk key=value,...`, or the parameters of the control method `disk.add`. All have the same keys.

use crate::limit::{Limits, Rate};
use crate::options::{CacheMode, DiskOptions, InvalidOption, Source};
use daemon::cli::{ByteSize, ListError};
use daemon::device_spec;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::str::FromStr;

/// Name of the disk of the command line, when `--id` gives none.
pub const DEFAULT_ID: &str = "disk0";
/// Queues offered unless told otherwise. QEMU asks for one a virtual processor and refuses a disk that has fewer; a queue
/// that no driver starts costs a few KiB.
pub const DEFAULT_QUEUES: u16 = 16;

device_spec! {
    /// One disk. Every key is optional but `path`, and a socket where the disk is not the command line's own.
    #[command(next_help_heading = "Disk")]
    pub struct DiskSpec("disk") {
        /// Image or block device to serve, or mem:SIZE, or null:SIZE
        ///
        /// `mem:4G` is a disk in memory that is gone with the process; `null:1T` takes writes and returns nothing,
        /// for measuring. A file whose name begins with mem: or null: is written ./mem:...
        #[arg(long = "blk-file", value_name = "PATH", id = "blk_file")]
        pub path: Option<String>,

        /// Name of the disk for logs, metrics and vhostctl
        #[arg(long, value_name = "NAME")]
        pub id: Option<String>,

        /// Refuse every write
        #[arg(long)]
        pub read_only: bool,

        /// Bypass the host's page cache (O_DIRECT)
        ///
        /// Guest buffers that the disk cannot take as they are go through bounce buffers, which are counted.
        #[arg(long)]
        pub direct: bool,

        /// Most request queues the guest may use [default: 16]
        ///
        /// QEMU asks for as many as the guest has processors, unless its device says num-queues=N, and refuses a disk that has
        /// fewer.
        #[arg(long, value_name = "N")]
        pub num_queues: Option<u16>,

        /// Largest size of a queue, a power of two [default: 1024]
        #[arg(long, value_name = "N")]
        pub queue_size: Option<u16>,

        /// Logical block size in bytes [default: what the disk has, 512 for files]
        #[arg(long, value_name = "BYTES")]
        pub block_size: Option<ByteSize>,

        /// Serial number the guest sees, at most 20 characters [default: the name]
        #[arg(long, value_name = "TEXT")]
        pub serial: Option<String>,

        /// Most data segments the guest is told to put in a request [default: 126]
        #[arg(long, value_name = "N")]
        pub seg_max: Option<u32>,

        /// Most ranges in a discard or write-zeroes request [default: 32]
        #[arg(long, value_name = "N")]
        pub max_discard_seg: Option<u32>,

        /// Do not offer discard
        #[arg(long)]
        pub no_discard: bool,

        /// Whether completed writes may be lost with power until the guest flushes [default: writeback]
        #[arg(long, value_enum, value_name = "MODE")]
        pub cache: Option<CacheMode>,

        /// Do not lock the file against other processes while a guest uses it
        #[arg(long)]
        pub share_rw: bool,

        /// Most requests a second, with an optional burst: RATE or RATE:BURST
        ///
        /// Example: `--iops 5000:10000`; 0 is no limit. Can be changed while running: `vhostctl limit`.
        #[arg(long, value_name = "RATE")]
        pub iops: Option<Rate>,

        /// Most read requests a second
        #[arg(long, value_name = "RATE")]
        pub read_iops: Option<Rate>,

        /// Most write requests a second
        #[arg(long, value_name = "RATE")]
        pub write_iops: Option<Rate>,

        /// Most bytes a second, with an optional burst: RATE or RATE:BURST
        ///
        /// Example: `--bandwidth 200M:1G`.
        #[arg(long, value_name = "RATE")]
        pub bandwidth: Option<Rate>,

        /// Most bytes read a second
        #[arg(long, value_name = "RATE")]
        pub read_bandwidth: Option<Rate>,

        /// Most bytes written a second
        #[arg(long, value_name = "RATE")]
        pub write_bandwidth: Option<Rate>,
    }
}

impl DiskSpec {
    /// The options of the disk, checked.
    pub fn options(&self) -> Result<DiskOptions, InvalidOption> {
        let id = self.id.clone().unwrap_or_else(|| DEFAULT_ID.into());
        let path = self.path.as_deref().ok_or_else(|| InvalidOption::NoPath(id.clone()))?;
        let defaults = DiskOptions::new(id, path.parse::<Source>()?);
        let block_size = self.block_size.map(|size| u32::try_from(size.bytes()).unwrap_or(u32::MAX));
        let options = DiskOptions {
            read_only: self.read_only,
            direct: self.direct,
            num_queues: self.num_queues.unwrap_or(DEFAULT_QUEUES),
            queue_size: self.queue_size.unwrap_or(defaults.queue_size),
            block_size,
            serial: self.serial.clone(),
            seg_max: self.seg_max.unwrap_or(defaults.seg_max),
            max_discard_seg: self.max_discard_seg.unwrap_or(defaults.max_discard_seg),
            discard: !self.no_discard,
            cache: self.cache.unwrap_or_default(),
            share_rw: self.share_rw,
            limits: self.limits(),
            ..defaults
        };
        options.check()?;
        Ok(options)
    }

    fn limits(&self) -> Limits {
        Limits {
            iops: self.iops.unwrap_or_default(),
            read_iops: self.read_iops.unwrap_or_default(),
            write_iops: self.write_iops.unwrap_or_default(),
            bandwidth: self.bandwidth.unwrap_or_default(),
            read_bandwidth: self.read_bandwidth.unwrap_or_default(),
            write_bandwidth: self.write_bandwidth.unwrap_or_default(),
        }
    }
}

impl FromStr for Rate {
    type Err = ListError;

    /// `RATE` or `RATE:BURST`, both with an optional unit as sizes have. 0 is no limit, and then has no burst.
    fn from_str(text: &str) -> Result<Self, ListError> {
        let number = |text: &str| {
            let size = text.parse::<ByteSize>();
            size.map(ByteSize::bytes)
                .map_err(|_| ListError::Value(format!("'{text}' is not a rate such as 500 or 10M")))
        };
        let Some((rate, burst)) = text.split_once(':') else {
            return Ok(Self { rate: number(text)?, burst: 0 });
        };
        match (number(rate)?, number(burst)?) {
            (0, _) | (_, 0) => {
                let why = "neither a rate nor its burst may be 0; 0 alone is no limit";
                Err(ListError::Value(format!("'{text}' is not a limit: {why}")))
            }
            (rate, burst) => Ok(Self { rate, burst }),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    /// A number, a string as on the command line, or a table with `rate` and `burst`, as `status` shows it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a rate: a number, a string such as \"10M:50M\", or rate and burst")]
        enum Form {
            Number(u64),
            Text(String),
            Table(Table),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            rate: u64,
            #[serde(default)]
            burst: u64,
        }
        match Form::deserialize(deserializer)? {
            Form::Number(rate) => Ok(Self { rate, burst: 0 }),
            Form::Text(text) => text.parse().map_err(de::Error::custom),
            Form::Table(Table { rate: 0, burst: 1.. }) => {
                Err(de::Error::custom("a burst needs a rate above 0"))
            }
            Form::Table(Table { rate, burst }) => Ok(Self { rate, burst }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> DiskSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_of_keys_is_a_disk() {
        let disk =
            spec("id=root,path=/img,,1.raw,socket=/run/r.sock,read-only,num-queues=4,bandwidth=10M:50M");
        assert_eq!(disk.path.as_deref(), Some("/img,1.raw"));
        assert_eq!(disk.socket, Some("/run/r.sock".into()));
        assert_eq!(disk.num_queues, Some(4));
        assert!(disk.read_only);
        assert_eq!(disk.bandwidth, Some(Rate { rate: 10 << 20, burst: 50 << 20 }));
        assert!(!spec("read-only=off").read_only);
    }

    #[test]
    fn wrong_lists_name_what_is_wrong() {
        let error = |text: &str| text.parse::<DiskSpec>().unwrap_err().to_string();
        assert!(error("path=/a,colour=red").contains("colour"));
        assert_eq!(error("path"), "'path' is not KEY=VALUE");
        assert_eq!(error("id=a,id=b"), "'id' is given twice");
        assert!(error("iops=fast").contains("fast"));
        assert!(error("num-queues=many").contains("many"));
    }

    #[test]
    fn zero_is_no_limit_and_has_no_burst() {
        assert_eq!("0".parse::<Rate>().unwrap(), Rate::default());
        for text in ["0:0", "0:5", "500:0"] {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("no limit"), "{error}");
        }
        let table = |text: &str| toml::from_str::<DiskSpec>(text);
        assert_eq!(table("iops = { rate = 0 }").unwrap().iops, Some(Rate::default()));
        assert!(table("iops = { rate = 0, burst = 5 }").is_err());
        assert!(table("iops = '0:5'").is_err());
    }

    #[test]
    fn the_configuration_file_takes_the_same_keys() {
        let text = "id = 'a'\npath = 'mem:1M'\niops = 100\nbandwidth = '1M'\n\
            read-iops = { rate = 5, burst = 7 }\nblock-size = 4096\ncache = 'writethrough'\n";
        let options = toml::from_str::<DiskSpec>(text).unwrap().options().unwrap();
        assert_eq!(options.source, Source::Mem(1 << 20));
        assert_eq!(options.limits.iops, Rate { rate: 100, burst: 0 });
        assert_eq!(options.limits.bandwidth, Rate { rate: 1 << 20, burst: 0 });
        assert_eq!(options.limits.read_iops, Rate { rate: 5, burst: 7 });
        assert_eq!(options.block_size, Some(4096));
        assert_eq!(options.cache, CacheMode::Writethrough);
        assert!(toml::from_str::<DiskSpec>("colour = 'red'").is_err());
    }

    #[test]
    fn a_disk_without_a_path_is_refused() {
        assert_eq!(spec("id=x").options().unwrap_err(), InvalidOption::NoPath("x".into()));
    }
}
