//! Backends: `vhostd-blk`, `vhostd-net`, `vhostd-crypto`, and `qemu-storage-daemon` as a peer nobody here wrote.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bed;
use crate::crypto::device::QUEUES;
use crate::image;
use crate::net::control::Control;
use crate::net::namespace::Namespace;
use crate::process::{Process, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running backend, and how to start it again.
pub struct Daemon {
    process: Process,
    program: PathBuf,
    args: Vec<OsString>,
    sockets: Vec<PathBuf>,
    log: PathBuf,
}

impl Daemon {
    /// `vhostd-blk` with one disk: `--socket-path <socket> --blk-file <file>` and `extra` options.
    ///
    /// # Errors
    /// When it is not built, or ends before it listens.
    pub fn blk(socket: &Path, file: &Path, extra: &[&str]) -> Result<Self> {
        let mut args: Vec<OsString> =
            vec!["--socket-path".into(), socket.into(), "--blk-file".into(), file.into()];
        args.extend(extra.iter().map(OsString::from));
        Self::start(&bed::binary("vhostd-blk")?, args, vec![socket.to_owned()])
    }

    /// `vhostd-blk` with any options; ready once all of `sockets` listen.
    ///
    /// # Errors
    /// As for [`Daemon::blk`].
    pub fn blk_with(args: &[&str], sockets: &[PathBuf]) -> Result<Self> {
        Self::start(&bed::binary("vhostd-blk")?, args.iter().map(OsString::from).collect(), sockets.to_vec())
    }

    /// `vhostd-blk` with `count` disks of `mib` MiB each, described by a configuration file in `dir`. Their sockets are at
    /// [`Daemon::socket_of`].
    ///
    /// # Errors
    /// As for [`Daemon::blk`].
    pub fn blk_disks(dir: &Path, count: usize, mib: u64, extra: &[&str]) -> Result<Self> {
        let mut config = String::new();
        let mut sockets = Vec::new();
        for index in 0..count {
            let file = image::sparse(dir, &format!("disk{index}.img"), mib)?;
            let socket = Self::socket_of(dir, index);
            config.push_str(&format!(
                "[[disk]]\nid = \"disk{index}\"\nsocket = {socket:?}\npath = {file:?}\n\n"
            ));
            sockets.push(socket);
        }
        let path = dir.join("disks.toml");
        fs::write(&path, config)?;
        let mut args: Vec<OsString> = vec!["--config".into(), path.into()];
        args.extend(extra.iter().map(OsString::from));
        Self::start(&bed::binary("vhostd-blk")?, args, sockets)
    }

    /// Where disk `index` of [`Daemon::blk_disks`] listens.
    pub fn socket_of(dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("disk{index}.sock"))
    }

    /// `vhostd-net` with a port for each of `ports`, which are further options of `--port`: `p0`, `p1`, ... with their
    /// sockets at [`Daemon::port_of`]. A port with `connect` is a client. The control socket is at [`Daemon::control_of`].
    ///
    /// # Errors
    /// As for [`Daemon::blk`].
    pub fn net(dir: &Path, ports: &[&str], extra: &[&str]) -> Result<Self> {
        let command = Command::new(bed::binary("vhostd-net")?);
        Self::start_net(command, dir, ports, extra)
    }

    /// The same in a network namespace, where its uplink is.
    ///
    /// # Errors
    /// As for [`Daemon::blk`].
    pub fn net_in(namespace: &Namespace, dir: &Path, ports: &[&str], extra: &[&str]) -> Result<Self> {
        let binary = bed::binary("vhostd-net")?;
        let command = namespace.command(binary.to_str().context("The path is not UTF-8")?)?;
        Self::start_net(command, dir, ports, extra)
    }

    fn start_net(command: Command, dir: &Path, ports: &[&str], extra: &[&str]) -> Result<Self> {
        let mut args: Vec<OsString> = command.get_args().map(OsString::from).collect();
        let mut sockets = vec![Self::control_of(dir)];
        for (index, options) in ports.iter().enumerate() {
            let socket = Self::port_of(dir, index);
            let client = options.split(',').any(|option| option == "connect");
            let role = if client { "connect" } else { "socket" };
            let mut port = format!("id=p{index},{role}={}", socket.display());
            for option in options.split(',').filter(|option| !option.is_empty() && *option != "connect") {
                port.push_str(&format!(",{option}"));
            }
            args.extend(["--port".into(), port.into()]);
            if !client {
                sockets.push(socket);
            }
        }
        args.extend(["--control-socket".into(), Self::control_of(dir).into()]);
        args.extend(extra.iter().map(OsString::from));
        Self::start(Path::new(command.get_program()), args, sockets)
    }

    /// Where port `index` of [`Daemon::net`] is.
    pub fn port_of(dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("port{index}.sock"))
    }

    /// Where the control socket of [`Daemon::net`] is.
    pub fn control_of(dir: &Path) -> PathBuf {
        dir.join("control.sock")
    }

    /// A connection to the control socket of [`Daemon::net`].
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn control(&self) -> Result<Control> {
        Control::connect(self.sockets.first().context("A daemon without a socket")?)
    }

    /// `vhostd-crypto` with `count` devices, `crypto0`, `crypto1`, ... with their sockets at [`Daemon::crypto_of`]. The control
    /// socket is at [`Daemon::control_of`].
    ///
    /// # Errors
    /// As for [`Daemon::blk`].
    pub fn crypto(dir: &Path, count: usize, extra: &[&str]) -> Result<Self> {
        let mut args: Vec<OsString> = vec!["--control-socket".into(), Self::control_of(dir).into()];
        let mut sockets = vec![Self::control_of(dir)];
        for index in 0..count {
            let socket = Self::crypto_of(dir, index);
            let device = format!("id=crypto{index},queues={QUEUES},socket={}", socket.display());
            args.extend(["--device".into(), device.into()]);
            sockets.push(socket);
        }
        args.extend(extra.iter().map(OsString::from));
        Self::start(&bed::binary("vhostd-crypto")?, args, sockets)
    }

    /// Where device `index` of [`Daemon::crypto`] is.
    pub fn crypto_of(dir: &Path, index: usize) -> PathBuf {
        dir.join(format!("crypto{index}.sock"))
    }

    /// `vhostd-compress` with one device of `queues` queues, `compress0`, with its socket at [`Daemon::compress_of`]. The
    /// control socket is at [`Daemon::control_of`].
    ///
    /// # Errors
    /// As for [`Daemon::blk`].
    pub fn compress(dir: &Path, queues: u16, extra: &[&str]) -> Result<Self> {
        let socket = Self::compress_of(dir);
        let device = format!("id=compress0,queues={queues},socket={}", socket.display());
        let mut args: Vec<OsString> = vec!["--control-socket".into(), Self::control_of(dir).into()];
        args.extend(["--device".into(), device.into()]);
        args.extend(extra.iter().map(OsString::from));
        Self::start(&bed::binary("vhostd-compress")?, args, vec![Self::control_of(dir), socket])
    }

    /// Where the device of [`Daemon::compress`] is.
    pub fn compress_of(dir: &Path) -> PathBuf {
        dir.join("compress0.sock")
    }

    /// QEMU's storage daemon exporting a raw file with `queues` queues.
    ///
    /// # Errors
    /// When it is not installed, or ends before it listens.
    pub fn storage_daemon(socket: &Path, file: &Path, queues: u16) -> Result<Self> {
        let node =
            format!("driver=file,node-name=disk,filename={},discard=unmap,cache.direct=off", file.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={},num-queues={queues}",
            socket.display()
        );
        let args = vec!["--blockdev".into(), node.into(), "--export".into(), export.into()];
        Self::start(&bed::program("qemu-storage-daemon")?, args, vec![socket.to_owned()])
    }

    fn start(program: &Path, args: Vec<OsString>, sockets: Vec<PathBuf>) -> Result<Self> {
        let log = match sockets.first() {
            Some(socket) => socket.with_extension("log"),
            None => bail!("A daemon without a socket"),
        };
        let process = spawn(program, &args, &log)?;
        let mut daemon = Self { process, program: program.to_owned(), args, sockets, log };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL, then starts it again with the same options; returns when it listens again.
    ///
    /// # Errors
    /// When it was dead already, or does not come back.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.restart()
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.program, &self.args, &self.log)?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = wait_until(PATIENCE, || {
            self.process.must_run()?;
            // Its own table: it may be in another network namespace.
            Ok(all_listen(&self.process.proc_file("net/unix")?, &self.sockets))
        })?;
        if !ready {
            bail!(
                "{} does not listen after {PATIENCE:?}:\n{}",
                self.program.display(),
                self.process.output()
            );
        }
        Ok(())
    }
}

fn spawn(program: &Path, args: &[OsString], log: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(args);
    Process::start(command, log)
}

/// True when each path is bound to a socket that accepts connections. Looks at the kernel's table rather than trying:
/// a trial connection would be the daemon's one client.
fn all_listen(table: &str, sockets: &[PathBuf]) -> bool {
    sockets.iter().all(|socket| {
        table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Flags 00010000 is SO_ACCEPTCON.
            fields.len() == 8 && fields[3] == "00010000" && Path::new(fields[7]) == socket
        })
    })
}
