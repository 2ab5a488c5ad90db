//! What vhostd-net cannot do ends in one sentence that says what to do about it, an exit code, and nothing left behind.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use e2e::bed;
use e2e::daemon::Daemon;
use e2e::net::host::Host;
use e2e::net::namespace::Namespace;
use e2e::refusal::is_refused;
use tempfile::TempDir;

/// Asked for something that cannot be.
const USAGE: i32 = 2;

/// Runs in a namespace, so that no interface of this machine is at stake.
struct Playground {
    dir: TempDir,
    namespace: Namespace,
}

impl Playground {
    fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, namespace: Namespace::new()? })
    }

    fn command(&self, prefix: &[&str], args: &[&str]) -> Result<Command> {
        let binary = bed::binary("vhostd-net")?;
        let mut command = match prefix {
            [] => self.namespace.command(path(&binary)?)?,
            [program, rest @ ..] => {
                let mut command = self.namespace.command(program)?;
                command.args(rest).arg(binary);
                command
            }
        };
        command.args(args);
        Ok(command)
    }

    /// With one port and these options.
    fn refuses(&self, code: i32, args: &[&str], words: &[&str]) -> Result<()> {
        let args = [&["--port", "id=a,socket=a.sock"], args].concat();
        self.refuses_all(code, &args, words)
    }

    fn refuses_all(&self, code: i32, args: &[&str], words: &[&str]) -> Result<()> {
        is_refused(&mut self.command(&[], args)?, self.dir.path(), code, words)
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("The path is not UTF-8")
}

#[test]
fn ports_that_contradict_each_other_are_refused() -> Result<()> {
    let here = Playground::new()?;
    here.refuses(USAGE, &["--port", "id=b,socket=a.sock"], &["a.sock"])?;
    here.refuses(USAGE, &["--port", "id=a,socket=b.sock"], &["a"])?;
    let mac = "52:54:00:00:00:01";
    let [one, other] = ["a", "b"].map(|id| format!("id={id},socket={id}.sock,mac={mac}"));
    here.refuses_all(USAGE, &["--port", &one, "--port", &other], &[mac])
}

#[test]
fn values_out_of_range_are_refused() -> Result<()> {
    let here = Playground::new()?;
    for (port, words) in [
        ("mtu=65536", &["mtu"][..]),
        ("mtu=67", &["mtu"]),
        ("mac=52:54:00:00:00", &["mac", "52:54:00:00:00"]),
        ("mac=01:00:5e:00:00:01", &["01:00:5e:00:00:01"]),
        ("mac=00:00:00:00:00:00", &["00:00:00:00:00:00"]),
        ("vlan=4095", &["vlan"]),
        ("vlan=0", &["vlan"]),
        ("vlan=1,trunk=2", &["vlan", "trunk"]),
        ("queues=17", &["queues"]),
        ("queues=0", &["queues"]),
        ("sockt=x", &["sockt"]),
        ("filter=nonsense", &["filter"]),
        ("mirror=nobody", &["nobody"]),
    ] {
        let port = format!("id=b,socket=b.sock,{port}");
        here.refuses(USAGE, &["--port", &port], words)?;
    }
    here.refuses_all(USAGE, &[], &["socket"])
}

#[test]
fn uplinks_that_do_not_exist_are_refused() -> Result<()> {
    let here = Playground::new()?;
    here.refuses(USAGE, &["--uplink", "wire:eth0"], &["wire:eth0", "tap"])?;
    here.refuses(USAGE, &["--uplink", "tap:a-name-of-16-byt"], &["a-name-of-16-byt", "15"])?;
    here.refuses(USAGE, &["--uplink", "af_xdp:a-name-of-16-byt"], &["a-name-of-16-byt", "15"])?;
    here.refuses(USAGE, &["--uplink", "tap:tap0,mtu=65536"], &["mtu"])?;
    here.refuses(USAGE, &["--uplink", "tap:tap0,mode=copy"], &["mode"])?;
    here.refuses(USAGE, &["--uplink", "af_xdp:nowhere"], &["nowhere"])?;
    here.refuses(USAGE, &["--uplink", "tap:tap0,bridge=nowhere"], &["nowhere"])?;
    here.refuses(USAGE, &["--uplink", "tap:lo"], &["lo"])
}

#[test]
fn an_uplink_that_somebody_else_uses_is_refused() -> Result<()> {
    let mut here = Playground::new()?;
    here.namespace.run("ip link add veth0 type veth peer name veth1 && ip link set veth0 up")?;
    let elsewhere = tempfile::tempdir()?;
    for uplink in ["tap:tap0", "af_xdp:veth0"] {
        let _daemon = Daemon::net_in(&here.namespace, elsewhere.path(), &[""], &["--uplink", uplink])?;
        let name = uplink.split_once(':').map_or(uplink, |(_, name)| name);
        here.refuses(USAGE, &["--uplink", uplink], &[name])?;
    }
    Ok(())
}

#[test]
fn a_missing_privilege_is_named() -> Result<()> {
    let mut here = Playground::new()?;
    here.namespace.run("ip link add veth0 type veth peer name veth1 && ip link set veth0 up")?;
    let without = ["setpriv", "--bounding-set", "-net_admin,-net_raw,-sys_admin,-bpf", "--inh-caps", "-all"];
    for uplink in ["tap:tap0", "af_xdp:veth0"] {
        let args = ["--port", "socket=a.sock", "--uplink", uplink];
        let mut command = here.command(&without, &args)?;
        is_refused(&mut command, here.dir.path(), USAGE, &["CAP_NET_ADMIN"])?;
    }
    Ok(())
}

#[test]
fn discovery_prints_capabilities_and_starts_nothing() -> Result<()> {
    let here = Playground::new()?;
    let output = here.command(&[], &["--print-capabilities"])?.current_dir(here.dir.path()).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(value["type"], "net");
    Ok(())
}
