//! The command line and the configuration file.

use crate::spec::DiskSpec;
use daemon::cli::Common;
use daemon::config::Settings;
use serde::Deserialize;

const EXAMPLES: &str = "\
Examples:
  vhostd-blk --socket-path /tmp/disk.sock --blk-file disk.img
      QEMU's side (from 9.2 on reconnect-ms=1000 for reconnect=1):
        -object memory-backend-memfd,id=m,size=4G,share=on -machine memory-backend=m \\
        -chardev socket,id=c,path=/tmp/disk.sock,reconnect=1 \\
        -device vhost-user-blk-pci,chardev=c
  vhostd-blk --socket-path s --blk-file /dev/nvme0n1 --direct --num-queues 4 --cpus 2-5
  vhostd-blk --disk id=root,path=root.img,socket=root.sock \\
             --disk id=iso,path=cd.iso,socket=cd.sock,read-only
  vhostd-blk --config /etc/vhostd/main.toml --metrics 127.0.0.1:9100
";

/// Serves disks to virtual machines: virtio-blk over vhost-user
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "vhostd-blk", version, after_help = EXAMPLES)]
pub struct Args {
    /// What all daemons have.
    #[command(flatten)]
    pub common: Common,

    /// The disk of `--socket-path`, `--connect` or `--fd`.
    #[command(flatten)]
    pub disk: DiskSpec,

    /// One more disk, as KEY=VALUE,...; repeatable
    ///
    /// The keys are the disk's options without dashes, path for --blk-file, and socket (or connect, fd, fd-name),
    /// socket-mode and socket-group. A comma in a value is written twice.
    #[arg(long = "disk", value_name = "KEY=VALUE,...", help_heading = "Disk")]
    pub disks: Vec<DiskSpec>,

    /// Register guest memory with io_uring
    ///
    /// Saves the page lookups of each transfer, but pins all of the guest's memory: not together with memory
    /// balloons, postcopy migration or overcommitted hosts.
    #[arg(long, help_heading = "Workers")]
    pub register_memory: bool,
}

impl AsRef<Common> for Args {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

/// The configuration file: a table `[daemon]`, and a `[[disk]]` for each disk.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Settings that all daemons have.
    pub daemon: Settings,
    /// The disks.
    pub disk: Vec<DiskSpec>,
    /// As `--register-memory`.
    pub register_memory: bool,
}

impl AsRef<Settings> for Config {
    fn as_ref(&self) -> &Settings {
        &self.daemon
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn qemus_conventions_are_understood() {
        let args = ["vhostd-blk", "--socket-path", "/s", "--blk-file", "/img", "--read-only"];
        let args = Args::try_parse_from(args).unwrap();
        assert_eq!(args.disk.path.as_deref(), Some("/img"));
        assert!(args.disk.read_only);
        assert_eq!(args.common.endpoint.socket_path.as_deref(), Some("/s".as_ref()));
    }

    #[test]
    fn a_configuration_file_holds_disks_and_settings() {
        let text = "[daemon]\nworkers = 2\n[[disk]]\nid = 'a'\npath = 'mem:1M'\nsocket = '/a'\n\
            [[disk]]\nid = 'b'\npath = 'null:1M'\nsocket = '/b'\nread-only = true\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.disk.len(), 2);
        assert!(config.disk[1].read_only);
        assert!(toml::from_str::<Config>("[[disks]]\nid = 'a'").is_err());
    }
}
