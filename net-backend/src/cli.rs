//! The command line and the configuration file.

use crate::spec::{PortSpec, SwitchSpec, UplinkSpec};
use daemon::cli::Common;
use daemon::config::Settings;
use serde::Deserialize;

const EXAMPLES: &str = "\
Examples:
  vhostd-net --socket-path /tmp/net.sock --uplink tap:tap0
      QEMU's side (from 9.2 on reconnect-ms=1000 for reconnect=1):
        -object memory-backend-memfd,id=m,size=4G,share=on -machine memory-backend=m \\
        -chardev socket,id=c,path=/tmp/net.sock,reconnect=1 \\
        -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n
  vhostd-net --port id=a,socket=a.sock,mac=52:54:00:00:00:01,vlan=10 \\
             --port id=b,socket=b.sock,mac=52:54:00:00:00:02,vlan=10,anti-spoof
  vhostd-net --port socket=a.sock --uplink af_xdp:eth0,macs=52:54:00:00:00:01
  vhostd-net --socket-path s --uplink tap:tap0,queues=4,bridge=br0 --workers 4 --cpus 2-5
  vhostd-net --config /etc/vhostd/net.toml --control-socket /run/vhostd/net.sock
";

/// Switches frames between virtual machines: virtio-net over vhost-user
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "vhostd-net", version, after_help = EXAMPLES)]
pub struct Args {
    /// What all daemons have.
    #[command(flatten)]
    pub common: Common,

    /// The port of `--socket-path`, `--connect` or `--fd`.
    #[command(flatten)]
    pub port: PortSpec,

    /// One more port, as KEY=VALUE,...; repeatable
    ///
    /// The keys are the port's options without dashes, and socket (or connect, fd, fd-name), socket-mode and socket-group.
    /// A comma in a value is written twice, several values are joined with +. Example:
    /// `--port id=web,socket=/run/web.sock,mac=52:54:00:00:00:01,vlan=10,tx-bps=1G`.
    #[arg(long = "port", value_name = "KEY=VALUE,...", help_heading = "Port")]
    pub ports: Vec<PortSpec>,

    /// Way out of the host: tap:NAME[,KEY=VALUE...], af_xdp:INTERFACE[,KEY=VALUE...] or none [default: none]
    ///
    /// Of tap: queues=N, bridge=NAME to attach it to, persist to let it stay, attach if it must exist, mtu=BYTES, napi,
    /// txqueuelen=N, sndbuf=BYTES, or `tap:,fd=N+N` for open queues. Of af_xdp: mode=auto|zero-copy|copy|generic, macs=A+B
    /// and vlans=10+20 to leave all other frames to the host, groups=uplink|broadcast-only|host, ring=N, busy-poll=US,
    /// need-wakeup=on|off. Of both: id, vlan, trunk, native, rates, storm limits, learn-limit, mirror and filter, as a port
    /// has them.
    #[arg(long, value_name = "UPLINK", help_heading = "Switch")]
    pub uplink: Vec<UplinkSpec>,

    /// The switch.
    #[command(flatten)]
    pub switch: SwitchSpec,
}

impl AsRef<Common> for Args {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

/// The configuration file: tables `[daemon]`, `[switch]` and `[uplink]`, and a `[[port]]` for each port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Settings that all daemons have.
    pub daemon: Settings,
    /// The switch.
    pub switch: SwitchSpec,
    /// The way out.
    pub uplink: Option<UplinkSpec>,
    /// The ports.
    pub port: Vec<PortSpec>,
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
        let args = ["vhostd-net", "--socket-path", "/s", "--mac", "52:54:00:00:00:01", "--uplink", "tap:t0"];
        let args = Args::try_parse_from(args).unwrap();
        assert_eq!(args.common.endpoint.socket_path.as_deref(), Some("/s".as_ref()));
        assert!(args.port.mac.is_some() && args.uplink.len() == 1);
    }

    #[test]
    fn a_configuration_file_holds_ports_uplink_and_settings() {
        let text = "[daemon]\nworkers = 2\n[switch]\naging = 60\n[uplink]\ndevice = 'tap:tap0'\nqueues = 2\n\
            [[port]]\nid = 'a'\nsocket = '/a'\nvlan = 10\n[[port]]\nid = 'b'\nsocket = '/b'\nisolated = true\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!((config.port.len(), config.switch.aging), (2, Some(60)));
        assert_eq!(config.uplink.unwrap().queues, Some(2));
        assert!(toml::from_str::<Config>("[[ports]]\nid = 'a'").is_err());
    }

    #[test]
    fn the_example_in_deploy_is_valid_with_all_that_is_commented_out() {
        let text = include_str!("../../deploy/vhostd-net.toml");
        let full = daemon::testing::uncommented(text);
        for text in [text, &full] {
            let config: Config = toml::from_str(text).unwrap();
            config.port.iter().for_each(|port| drop(port.options().unwrap()));
            assert!(config.uplink.unwrap().options().unwrap().is_some());
            config.switch.options().unwrap();
        }
    }
}
