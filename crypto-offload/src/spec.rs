//! Devices and scheduling as the user writes them: options on the command line, tables `[[device]]` and `[scheduling]` in the
//! configuration file, a list `--device key=value,...`, or the parameters of control methods. All have the same keys.

use crate::engine::Choice;
use crate::options::{DEFAULT_QUEUE_SIZE, DEFAULT_QUEUES, DeviceOptions, Limits, Scheduling};
use daemon::cli::{ByteSize, from_text};
use daemon::device::{BadValue, Described};
use daemon::device_spec;
use offload::parameters::Change;
use offload::scheduling_spec;

/// Name of the command line's own device, when `--id` gives none.
pub const DEFAULT_ID: &str = "crypto0";

device_spec! {
    /// One device. Every key is optional but a socket, where the device is not the command line's own.
    #[command(next_help_heading = "Device")]
    pub struct DeviceSpec("device") {
        /// Name of the device for logs, metrics and vhostctl [default: crypto0]
        #[arg(long, value_name = "NAME")]
        pub id: Option<String>,

        /// Most data queues the guest may use, 1 to 255; the control queue comes on top [default: 1]
        ///
        /// QEMU's cryptodev-vhost-user uses one whatever its queues= says. With vhost-user-test-device-pci, give QEMU
        /// num_vqs=N+1: one more for the control queue.
        #[arg(long, value_name = "N")]
        pub queues: Option<u16>,

        /// Largest size of a queue, in descriptors [default: 1024]
        #[arg(long, value_name = "N")]
        pub queue_size: Option<u16>,

        /// Sessions the guest may have open at a time, 1 to 65536 [default: 4096]
        ///
        /// One more is refused. The keys of each are held in locked memory, about 2 KiB a session: see
        /// LimitMEMLOCK= of systemd, or ulimit -l. Can be changed while running: `vhostctl call device.set`.
        #[arg(long, value_name = "N")]
        pub sessions: Option<u32>,

        /// Longest source or destination of a request, in bytes, 4K to 16M [default: 1M]
        ///
        /// The guest reads it as max_size; a longer request is answered with ERR. Can be changed while running.
        #[arg(long, value_name = "BYTES")]
        pub max_size: Option<ByteSize>,
    }
}

scheduling_spec! {
    inline_bytes: "64";
    /// How requests are collected, submitted and computed.
    pub struct SchedulingSpec {
        /// Asymmetric results that are gathered before a worker is told of them, 1 to 1024 [default: 48]
        #[arg(long, value_name = "N")]
        pub asym_batch: Option<u16>,

        /// Which engine computes: auto, library or multibuffer [default: auto]
        ///
        /// auto takes for each request the one that is fastest at it, multibuffer its own lanes even where the library would be
        /// as fast, library never. A --batch of less than 16 leaves lanes empty. `vhostctl call engine.list` shows what there is
        /// on this machine.
        #[arg(long, value_name = "ENGINE")]
        #[serde(deserialize_with = "from_text")]
        pub engine: Option<Choice>,

        /// Threads for RSA and ECDSA, 1 to 256 [default: one a CPU the process may use, at most 8]
        ///
        /// They sleep while there is nothing to do, and never delay symmetric requests but for the CPU they share.
        #[arg(long, value_name = "N")]
        pub asym_threads: Option<u16>,
    }
}

impl SchedulingSpec {
    /// What of it can be changed while workers run.
    pub fn rule(&self) -> Change {
        Change { answers: self.asym_batch, ..self.flush() }
    }

    /// `present`, with what is set here changed, and checked.
    pub fn change(&self, present: &Scheduling) -> Result<Scheduling, BadValue> {
        let changed = Scheduling {
            policy: self.rule().of(present.policy),
            engine: self.engine.unwrap_or(present.engine),
            asym_threads: self.asym_threads.unwrap_or(present.asym_threads),
        };
        changed.check()?;
        Ok(changed)
    }
}

impl Described for DeviceSpec {
    type Options = DeviceOptions;

    fn options(&self) -> Result<DeviceOptions, BadValue> {
        let limits = Limits::default();
        let options = DeviceOptions {
            id: self.id.clone().unwrap_or_else(|| DEFAULT_ID.to_owned()),
            queues: self.queues.unwrap_or(DEFAULT_QUEUES),
            queue_size: self.queue_size.unwrap_or(DEFAULT_QUEUE_SIZE),
            limits: Limits {
                sessions: self.sessions.unwrap_or(limits.sessions),
                max_size: self.max_size.map_or(limits.max_size, ByteSize::clamped),
            },
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
    use crate::flush::Mode;
    use daemon::device::Spec;

    #[test]
    fn a_list_of_keys_is_a_device() {
        let text = "id=vm1,socket=/run/c,,1.sock,queues=4,sessions=64,max-size=64K";
        let spec: DeviceSpec = text.parse().unwrap();
        assert_eq!(spec.endpoint().socket_path, Some("/run/c,1.sock".into()));
        let options = spec.options().unwrap();
        assert_eq!((options.id.as_str(), options.queues, options.queue_size), ("vm1", 4, 1024));
        assert_eq!(options.limits, Limits { sessions: 64, max_size: 64 << 10 });
    }

    #[test]
    fn the_configuration_file_takes_the_same_keys() {
        let text = "id = 'vm1'\nsocket = '/run/c.sock'\nqueues = 4\nsessions = 64\nmax-size = '64K'\nqueue-size = 256\n";
        let options = toml::from_str::<DeviceSpec>(text).unwrap().options().unwrap();
        assert_eq!((options.queues, options.queue_size, options.limits.max_size), (4, 256, 64 << 10));
        assert!(toml::from_str::<DeviceSpec>("colour = 'red'").is_err());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file: SchedulingSpec = toml::from_str(
            "mode = 'timer=100us'\nbatch = 16\ndeadline-us = 20\ninline-bytes = '1K'\nengine = 'library'\nasym-threads = 2",
        )
        .unwrap();
        let given = SchedulingSpec { mode: Some(Mode::Busy), batch: Some(32), ..SchedulingSpec::default() };
        let scheduling = given.or(&file).change(&Scheduling::default()).unwrap();
        assert_eq!((scheduling.policy.mode, scheduling.policy.thresholds.batch), (Mode::Busy, 32));
        assert_eq!(scheduling.policy.thresholds.deadline_us, 20);
        assert_eq!(scheduling.policy.thresholds.inline_bytes, 1024);
        assert_eq!((scheduling.engine, scheduling.asym_threads), (Choice::Library, 2));
        assert_eq!(
            SchedulingSpec::default().change(&scheduling),
            Ok(scheduling),
            "nothing said, nothing changed"
        );
    }

    #[test]
    fn wrong_values_are_named_with_their_key_and_range() {
        let error = |text: &str| text.parse::<DeviceSpec>().unwrap().options().unwrap_err().to_string();
        assert_eq!(error("queues=0"), "The value 0 for queues is not between 1 and 255");
        assert_eq!(error("sessions=100000"), "The value 100000 for sessions is not between 1 and 65536");
        assert_eq!(
            error("max-size=1G"),
            "The value 1073741824 for max-size is not between 4096 and 16777216"
        );
        assert_eq!(
            error("max-size=8G"),
            "The value 4294967295 for max-size is not between 4096 and 16777216"
        );
        assert_eq!(error("id=a b"), "The device id 'a b' is not 1 to 64 letters, digits or any of -_.:");
        let unknown = "sesions=4".parse::<DeviceSpec>().unwrap_err().to_string();
        assert_eq!(unknown, "There is no key 'sesions'; did you mean 'sessions'?");
    }
}
