//! The command line and the configuration file.

use crate::spec::{DeviceSpec, SchedulingSpec};
use daemon::cli::Common;
use daemon::config::Settings;
use keeper::HandedArgs;
use serde::Deserialize;

const EXAMPLES: &str = "\
Examples:
  vhostd-compress --socket-path /tmp/compress.sock
      QEMU's side, 7.2 to 10.1, started after the daemon; its hiprio queue is one of the two:
        -object memory-backend-memfd,id=m,size=4G,share=on -machine memory-backend=m \\
        -chardev socket,id=c,path=/tmp/compress.sock \\
        -device vhost-user-fs-pci,chardev=c,tag=vcomp0,num-request-queues=1,queue-size=256
  vhostd-compress --socket-path /tmp/compress.sock --queues 4 --workers 2 --cpus 2-3
      QEMU's side from 10.2 on:
        -device vhost-user-test-device-pci,chardev=c,virtio-id=38,num_vqs=4,vq_size=256,config_size=64
  vhostd-compress --device id=vm1,socket=vm1.sock,verify=1/64 \\
                  --device id=vm2,socket=vm2.sock,queues=2,max-size=4M --mode timer=100us
  vhostd-compress --config /etc/vhostd/compress.toml --supervise --control-socket /run/vhostd/compress.sock
The guest uses it by vhostd-guest (compress, decompress, info), or by the library behind it.
";

/// Compresses and decompresses for virtual machines: DEFLATE, zlib, gzip, Zstandard and LZ4 over vhost-user
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "vhostd-compress", version, after_help = EXAMPLES)]
// The mode says it: an operator who gives it nevertheless is told so.
#[command(mut_arg("poll", |arg| arg.hide(true)))]
pub struct Args {
    /// What all daemons have.
    #[command(flatten)]
    pub common: Common,

    /// The device of `--socket-path`, `--connect` or `--fd`.
    #[command(flatten)]
    pub device: DeviceSpec,

    /// One more device, as KEY=VALUE,...; repeatable
    ///
    /// The keys are the device's options without dashes, and socket (or connect, fd, fd-name), socket-mode and
    /// socket-group. A comma in a value is written twice. Example:
    /// `--device id=vm1,socket=/run/vhostd/vm/vm1,queues=4,max-in-flight=128`.
    #[arg(long = "device", value_name = "KEY=VALUE,...", help_heading = "Device")]
    pub devices: Vec<DeviceSpec>,

    /// How requests are collected and computed.
    #[command(flatten)]
    pub scheduling: SchedulingSpec,

    /// Survive crashes: do the work in a process of its own, and start it again when it dies
    ///
    /// This process keeps the sockets, the guests' memory and the rings, and has unfinished requests done again by the next worker
    /// process. Streams are lost: their next request is answered with BAD_STREAM.
    #[arg(long, help_heading = "Scheduling")]
    pub supervise: bool,

    /// What a supervised process is given by the one that keeps it.
    #[command(flatten)]
    pub handed: HandedArgs,
}

impl AsRef<Common> for Args {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

/// The configuration file: tables `[daemon]` and `[scheduling]`, and a `[[device]]` for each device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Settings that all daemons have.
    pub daemon: Settings,
    /// How requests are collected and computed.
    pub scheduling: SchedulingSpec,
    /// As `--supervise`.
    pub supervise: bool,
    /// The devices.
    pub device: Vec<DeviceSpec>,
}

impl AsRef<Settings> for Config {
    fn as_ref(&self) -> &Settings {
        &self.daemon
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Scheduling;
    use clap::{CommandFactory, Parser};
    use daemon::device::Described;
    use offload::flush::Mode;
    use std::time::Duration;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn one_device_needs_a_socket_and_nothing_else() {
        let args = ["vhostd-compress", "--socket-path", "/s", "--queues", "2", "--mode", "timer=1ms"];
        let args = Args::try_parse_from(args).unwrap();
        assert_eq!(args.common.endpoint.socket_path.as_deref(), Some("/s".as_ref()));
        assert_eq!(args.device.queues, Some(2));
        assert_eq!(args.scheduling.mode, Some(Mode::Timer(Duration::from_millis(1))));
        assert!(!args.supervise && !args.handed.is_supervised());
    }

    #[test]
    fn a_configuration_file_holds_devices_scheduling_and_settings() {
        let text = "supervise = true\n[daemon]\nworkers = 2\n[scheduling]\nmode = 'busy'\nbatch = 32\n\
            [[device]]\nid = 'a'\nsocket = '/a'\n[[device]]\nid = 'b'\nsocket = '/b'\nverify = '1/8'\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!((config.device.len(), config.scheduling.batch), (2, Some(32)));
        assert!(config.supervise);
        assert!(toml::from_str::<Config>("[[devices]]\nid = 'a'").is_err());
    }

    #[test]
    fn the_example_in_deploy_is_valid_with_all_that_is_commented_out() {
        let text = include_str!("../../deploy/vhostd-compress.toml");
        let full = daemon::testing::uncommented(text);
        for (text, devices) in [(text, 1), (&full, 2)] {
            let config: Config = toml::from_str(text).unwrap();
            assert_eq!(config.device.len(), devices);
            config.device.iter().for_each(|device| drop(device.options().unwrap()));
            config.scheduling.change(&Scheduling::default()).unwrap();
        }
    }
}
