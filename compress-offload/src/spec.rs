//! Devices and scheduling as the user writes them: options on the command line, tables `[[device]]` and `[scheduling]` in the
//! configuration file, a list `--device key=value,...`, or the parameters of control methods. All have the same keys.

use crate::engine::Choice;
use crate::options::{DEFAULT_QUEUE_SIZE, DEFAULT_QUEUES, DeviceOptions, Limits, Scheduling, Verify};
use daemon::cli::{ByteSize, from_text};
use daemon::device::{BadValue, Described};
use daemon::device_spec;
use offload::scheduling_spec;

/// Name of the command line's own device, when `--id` gives none.
pub const DEFAULT_ID: &str = "compress0";

device_spec! {
    /// One device. Every key is optional but a socket, where the device is not the command line's own.
    #[command(next_help_heading = "Device")]
    pub struct DeviceSpec("device") {
        /// Name of the device for logs, metrics and vhostctl [default: compress0]
        #[arg(long, value_name = "NAME")]
        pub id: Option<String>,

        /// Most queues the guest may use, 1 to 256 [default: 2]
        ///
        /// With vhost-user-test-device-pci give QEMU num_vqs=N; with vhost-user-fs-pci num-request-queues=N-1, since its
        /// hiprio queue is one of them.
        #[arg(long, value_name = "N")]
        pub queues: Option<u16>,

        /// Largest size of a queue, in descriptors [default: 256]
        #[arg(long, value_name = "N")]
        pub queue_size: Option<u16>,

        /// Longest source, and longest destination, of a request, in bytes, 4K to 8M [default: 1M]
        ///
        /// The guest reads it as max_src and max_dst; a longer request is answered with BAD_REQUEST. The others of a worker wait
        /// for one request at the most, but at the highest level of Zstandard that is half a second a MiB. Can be changed while
        /// running: `vhostctl call device.set`.
        #[arg(long, value_name = "BYTES")]
        pub max_size: Option<ByteSize>,

        /// Most memory that requests in flight may take, 2 to 16384 MiB [default: 64]
        ///
        /// More are answered with BUSY at once. This bounds what a guest can make the daemon allocate, streams not included.
        /// Can be changed while running.
        #[arg(long, value_name = "MIB")]
        pub max_in_flight: Option<u32>,

        /// Streams the guest may have open at a time, 0 to 65536; 0: none [default: 64]
        ///
        /// A stream takes up to 8 MiB, depending on its format and level. Can be changed while running.
        #[arg(long, value_name = "N")]
        pub streams: Option<u32>,

        /// Decompress what was compressed and compare, before the guest gets it: off, all, or 1/N for one in N [default: off]
        ///
        /// What does not come out right is compressed again by another engine, and counted. A request may ask for it whatever
        /// this says. Can be changed while running.
        #[arg(long, value_name = "WHICH")]
        #[serde(deserialize_with = "from_text")]
        pub verify: Option<Verify>,

        /// Trust the guest not to change a source while it is read, and read it where it is
        ///
        /// Saves a copy of every source. A guest that breaks the promise may get garbage, or crash the daemon: engines are not
        /// made for data that change under them. Only for guests that could do no worse.
        #[arg(long)]
        pub zero_copy: bool,
    }
}

scheduling_spec! {
    inline_bytes: "1K";
    /// How requests are collected, submitted and computed.
    pub struct SchedulingSpec {
        /// Who is asked first for DEFLATE, zlib and gzip: auto, libdeflate, zlib-rs, or isal where it is built in [default: auto]
        ///
        /// auto takes the fastest for each level. Whoever fails, another is asked. `vhostctl call engine.list` shows what there
        /// is.
        #[arg(long, value_name = "ENGINE")]
        #[serde(deserialize_with = "from_text")]
        pub engine: Option<Choice>,
    }
}

impl SchedulingSpec {
    /// `present`, with what is set here changed, and checked.
    pub fn change(&self, present: &Scheduling) -> Result<Scheduling, BadValue> {
        let changed = Scheduling {
            policy: self.flush().of(present.policy),
            engine: self.engine.unwrap_or(present.engine),
        };
        changed.check()?;
        Ok(changed)
    }
}

/// What of [`Limits`] is to be different.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitsChange {
    /// Longest source and destination.
    pub max_size: Option<ByteSize>,
    /// In MiB.
    pub max_in_flight: Option<u32>,
    /// Streams.
    pub streams: Option<u32>,
    /// Which results are checked.
    pub verify: Option<Verify>,
}

impl LimitsChange {
    /// `present` with what is given changed, and checked.
    pub fn of(&self, present: Limits) -> Result<Limits, BadValue> {
        let limits = Limits {
            max_size: self.max_size.map_or(present.max_size, ByteSize::clamped),
            max_in_flight: self.max_in_flight.map_or(present.max_in_flight, |mib| u64::from(mib) << 20),
            streams: self.streams.unwrap_or(present.streams),
            verify: self.verify.unwrap_or(present.verify),
        };
        limits.check()?;
        Ok(limits)
    }
}

impl Described for DeviceSpec {
    type Options = DeviceOptions;

    fn options(&self) -> Result<DeviceOptions, BadValue> {
        let limits = LimitsChange {
            max_size: self.max_size,
            max_in_flight: self.max_in_flight,
            streams: self.streams,
            verify: self.verify,
        };
        let options = DeviceOptions {
            id: self.id.clone().unwrap_or_else(|| DEFAULT_ID.to_owned()),
            queues: self.queues.unwrap_or(DEFAULT_QUEUES),
            queue_size: self.queue_size.unwrap_or(DEFAULT_QUEUE_SIZE),
            zero_copy: self.zero_copy,
            limits: limits.of(Limits::default())?,
        };
        options.check()?;
        Ok(options)
    }

    fn name(options: &DeviceOptions) -> &str {
        &options.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::device::Spec;
    use offload::flush::Mode;

    #[test]
    fn a_list_of_keys_is_a_device() {
        let text = "id=vm1,socket=/run/c,,1.sock,queues=4,streams=8,max-size=64K,max-in-flight=8,verify=1/16,zero-copy";
        let spec: DeviceSpec = text.parse().unwrap();
        assert_eq!(spec.endpoint().socket_path, Some("/run/c,1.sock".into()));
        let options = spec.options().unwrap();
        assert_eq!((options.id.as_str(), options.queues, options.queue_size), ("vm1", 4, 256));
        assert!(options.zero_copy);
        let verify = "1/16".parse().unwrap();
        let limits = Limits { max_size: 64 << 10, max_in_flight: 8 << 20, streams: 8, verify };
        assert_eq!(options.limits, limits);
    }

    #[test]
    fn the_configuration_file_takes_the_same_keys() {
        let text = "id = 'vm1'\nsocket = '/run/c.sock'\nqueues = 4\nmax-size = '64K'\nqueue-size = 128\nverify = 'all'\n";
        let options = toml::from_str::<DeviceSpec>(text).unwrap().options().unwrap();
        assert_eq!((options.queues, options.queue_size, options.limits.max_size), (4, 128, 64 << 10));
        assert_eq!(options.limits.verify, Verify::All);
        assert!(toml::from_str::<DeviceSpec>("colour = 'red'").is_err());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file: SchedulingSpec = toml::from_str(
            "mode = 'timer=100us'\nbatch = 16\ndeadline-us = 20\ninline-bytes = '2K'\nengine = 'zlib-rs'",
        )
        .unwrap();
        let given = SchedulingSpec { mode: Some(Mode::Busy), batch: Some(32), ..SchedulingSpec::default() };
        let scheduling = given.or(&file).change(&Scheduling::default()).unwrap();
        assert_eq!((scheduling.policy.mode, scheduling.policy.thresholds.batch), (Mode::Busy, 32));
        assert_eq!(scheduling.policy.thresholds.deadline_us, 20);
        assert_eq!(scheduling.policy.thresholds.inline_bytes, 2048);
        assert_eq!(scheduling.engine.name(), "zlib-rs");
        assert_eq!(
            SchedulingSpec::default().change(&scheduling),
            Ok(scheduling),
            "nothing said, nothing changed"
        );
    }

    #[test]
    fn wrong_values_are_named_with_their_key_and_range() {
        let error = |text: &str| text.parse::<DeviceSpec>().unwrap().options().unwrap_err().to_string();
        assert_eq!(error("queues=0"), "The value 0 for queues is not between 1 and 256");
        assert_eq!(error("max-size=1G"), "The value 1073741824 for max-size is not between 4096 and 8388608");
        assert_eq!(error("max-in-flight=1"), "The value 1 for max-in-flight is not between 2 and 16384");
        assert_eq!(
            error("max-size=8M,max-in-flight=2"),
            "The value 2 for max-in-flight is not between 16 and 16384"
        );
        assert_eq!(error("streams=100000"), "The value 100000 for streams is not between 0 and 65536");
        let unknown = "steams=4".parse::<DeviceSpec>().unwrap_err().to_string();
        assert_eq!(unknown, "There is no key 'steams'; did you mean 'streams'?");
    }
}
