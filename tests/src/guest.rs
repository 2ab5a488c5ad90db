//! A Linux guest in a stock QEMU, under software emulation.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::base64;
use crate::bed;
use crate::crypto::device::Crypto;
use crate::net::namespace::{self, Namespace};
use crate::net::nic::Nic;
use crate::process::{Process, tail, wait_until};
use crate::qmp::Qmp;
use crate::shell::{Output, Shell};

/// Emulation on a busy machine is slow; nothing ordinary takes this long.
const BOOT: Duration = Duration::from_secs(90);
const COMMAND: Duration = Duration::from_secs(60);

/// Which QEMU a guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qemu {
    /// That of the Debian release.
    Release,
    /// That of Debian's development branch, unpacked into the testbed.
    Newest,
}

impl Qemu {
    fn program(self) -> Result<PathBuf> {
        match self {
            Self::Release => bed::program("qemu-system-x86_64"),
            Self::Newest => bed::file("qemu/run"),
        }
    }

    /// How a socket is told to connect again: from 9.2 on in milliseconds, and later only so.
    fn reconnect(self) -> (&'static str, u32) {
        match self {
            Self::Release => ("reconnect", 1),
            Self::Newest => ("reconnect-ms", 300),
        }
    }
}

/// A vhost-user-blk disk of the guest.
#[derive(Clone)]
pub struct Disk {
    socket: PathBuf,
    queues: u16,
    queue_size: u16,
    packed: bool,
}

impl Disk {
    /// One split queue of 128 entries, backed by whoever listens at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), queues: 1, queue_size: 128, packed: false }
    }

    /// Number of request queues.
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Entries a queue.
    pub fn queue_size(mut self, entries: u16) -> Self {
        self.queue_size = entries;
        self
    }

    /// Packed rings instead of split ones.
    pub fn packed(mut self, packed: bool) -> Self {
        self.packed = packed;
        self
    }

    fn args(&self, id: &str, qemu: Qemu) -> [String; 4] {
        let packed = if self.packed { "on" } else { "off" };
        let (reconnect, pause) = qemu.reconnect();
        [
            "-chardev".into(),
            format!("socket,id={id}-socket,path={},{reconnect}={pause}", self.socket.display()),
            "-device".into(),
            format!(
                "vhost-user-blk-pci,id={id},chardev={id}-socket,num-queues={},queue-size={},packed={packed}",
                self.queues, self.queue_size
            ),
        ]
    }
}

/// What the guest is made of. Disks appear as `/dev/vda`, `/dev/vdb`, ... in order, network devices as `eth0`, `eth1`, ...
pub struct Builder {
    memory_mib: u32,
    vcpus: u32,
    disks: Vec<Disk>,
    nics: Vec<Nic>,
    crypto: Vec<Crypto>,
    qemu: Qemu,
    slot: bool,
    incoming: bool,
    namespace: Option<u32>,
    options: Vec<String>,
}

impl Builder {
    /// Memory in MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Number of virtual processors.
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// Adds a disk.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Adds a network device.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// Adds a crypto device. The guest has a kernel with a driver for it, and few other tools.
    pub fn crypto(mut self, crypto: Crypto) -> Self {
        if crypto.needs_newest_qemu() {
            self.qemu = Qemu::Newest;
        }
        self.crypto.push(crypto);
        self
    }

    /// Another QEMU than the release's.
    pub fn qemu(mut self, qemu: Qemu) -> Self {
        self.qemu = qemu;
        self
    }

    /// An empty slot for [`Guest::plug`] and [`Guest::plug_nic`].
    pub fn hot_plug_slot(mut self) -> Self {
        self.slot = true;
        self
    }

    /// QEMU runs in this network namespace.
    pub fn inside(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.pid());
        self
    }

    /// Further options of QEMU.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Starts QEMU and waits until the guest's shell is there.
    ///
    /// # Errors
    /// When a component is missing, QEMU ends, or the guest does not come up; with the end of the guest's console.
    pub fn boot(self) -> Result<Guest> {
        let mut guest = self.launch()?;
        let booted = guest.shell.wait_boot(BOOT);
        booted.map_err(|error| guest.explain(error))?;
        for (disk, letter) in self.disks.iter().zip('a'..='z') {
            guest.must_have(disk, letter, self.vcpus)?;
        }
        for (index, nic) in self.nics.iter().enumerate() {
            guest.must_have_nic(nic, index)?;
        }
        Ok(guest)
    }

    /// Starts a QEMU that waits for a migration: the destination of [`Guest::migrate_to`].
    ///
    /// # Errors
    /// When a component is missing or QEMU ends.
    pub fn await_migration(mut self) -> Result<Guest> {
        self.incoming = true;
        self.launch()
    }

    /// Boots two guests at the same time.
    ///
    /// # Errors
    /// As for [`Builder::boot`].
    pub fn boot_with(self, other: Builder) -> Result<(Guest, Guest)> {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| other.boot());
            let guest = self.boot();
            match other.join() {
                Ok(other) => Ok((guest?, other?)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn launch(&self) -> Result<Guest> {
        let dir = tempfile::Builder::new().prefix("vhostd-guest-").tempdir()?;
        // QEMU connects to these, so nothing it prints early is lost.
        let listeners = ["monitor", "console", "shell"].map(|name| UnixListener::bind(dir.path().join(name)));
        let [monitor, console, shell] = listeners;
        let command = self.command(dir.path())?;
        let mut qemu = Process::start(command, &dir.path().join("qemu.log"))?;
        let console = Console::new(accept(&console?, &mut qemu)?);
        let shell = Shell::new(accept(&shell?, &mut qemu)?);
        let qmp = Qmp::new(accept(&monitor?, &mut qemu)?)
            .map_err(|error| error.context(format!("QEMU says: {}", qemu.output())))?;
        Ok(Guest { version: self.qemu, qmp, shell, console, qemu, dir })
    }

    fn command(&self, dir: &Path) -> Result<Command> {
        let program = self.qemu.program()?;
        let mut qemu = match self.namespace {
            Some(pid) => namespace::enter(pid, &program)?,
            None => Command::new(program),
        };
        let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib);
        qemu.args(["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-object", &memory]);
        qemu.args(["-m", &format!("{}M", self.memory_mib), "-smp", &self.vcpus.to_string()]);
        let [kernel, image] = match self.crypto.is_empty() {
            true => ["vmlinuz", "initramfs.cpio"],
            false => ["vmlinuz-crypto", "initramfs-crypto.cpio"],
        };
        qemu.arg("-kernel").arg(bed::file(kernel)?).arg("-initrd").arg(bed::file(image)?);
        qemu.args(["-append", "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on"]);
        for (name, frontend) in [("console", "-serial"), ("shell", "-serial"), ("monitor", "-mon")] {
            qemu.arg("-chardev").arg(format!("socket,id={name},path={}", dir.join(name).display()));
            let value = if frontend == "-mon" {
                format!("chardev={name},mode=control")
            } else {
                format!("chardev:{name}")
            };
            qemu.args([frontend, &value]);
        }
        for (index, disk) in self.disks.iter().enumerate() {
            qemu.args(disk.args(&format!("disk{index}"), self.qemu));
        }
        for (index, nic) in self.nics.iter().enumerate() {
            qemu.args(nic.args(&format!("nic{index}")));
        }
        for (index, crypto) in self.crypto.iter().enumerate() {
            qemu.args(crypto.args(&format!("crypto{index}")));
        }
        if self.slot {
            qemu.args(["-device", "pcie-root-port,id=free,chassis=1,slot=1"]);
        }
        if self.incoming {
            qemu.args(["-incoming", "defer"]);
        }
        qemu.args(&self.options);
        Ok(qemu)
    }
}

/// A running guest. Dropping it kills QEMU and removes its files.
pub struct Guest {
    version: Qemu,
    qmp: Qmp,
    shell: Shell,
    console: Console,
    qemu: Process,
    dir: TempDir,
}

impl Guest {
    /// 512 MiB, two processors, no device.
    pub fn builder() -> Builder {
        Builder {
            memory_mib: 512,
            vcpus: 2,
            disks: Vec::new(),
            nics: Vec::new(),
            crypto: Vec::new(),
            qemu: Qemu::Release,
            slot: false,
            incoming: false,
            namespace: None,
            options: Vec::new(),
        }
    }

    /// Runs a script in the guest that must succeed within a minute; returns what it printed.
    ///
    /// # Errors
    /// When it fails, with its output and the end of the guest's console.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.sh_for(script, COMMAND)
    }

    /// As [`Guest::sh`], with another time limit.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn sh_for(&mut self, script: &str, timeout: Duration) -> Result<String> {
        let Output { code, text } = self.try_sh(script, timeout)?;
        if code != 0 {
            return Err(self.explain(anyhow::anyhow!("Exit code {code} from: {script}\n{text}")));
        }
        Ok(text)
    }

    /// Runs a script in the guest that may fail.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub fn try_sh(&mut self, script: &str, timeout: Duration) -> Result<Output> {
        self.shell.run(script, timeout).map_err(|error| self.explain(error))
    }

    /// Writes a small file in the guest.
    ///
    /// # Errors
    /// Those of [`Guest::sh`].
    pub fn write(&mut self, path: &str, contents: &[u8]) -> Result<()> {
        self.sh(&format!("echo {} | base64 -d > {path}", base64::encode(contents)))?;
        Ok(())
    }

    /// Reads a small file of the guest.
    ///
    /// # Errors
    /// Those of [`Guest::sh`].
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        Ok(base64::decode(self.sh(&format!("base64 -w 0 {path}"))?.trim()))
    }

    /// Restarts the guest from inside, without a shutdown, and waits until its shell is there again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&mut self) -> Result<()> {
        self.shell.start("reboot -f")?;
        self.shell.wait_boot(BOOT).map_err(|error| self.explain(error))
    }

    /// The monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Plugs a disk into the slot of [`Builder::hot_plug_slot`]; the guest finds it in its own time.
    ///
    /// # Errors
    /// QEMU's.
    pub fn plug(&mut self, disk: &Disk, id: &str) -> Result<()> {
        let address = json!({"type": "unix", "data": {"path": disk.socket}});
        let (reconnect, pause) = self.version.reconnect();
        let backend = json!({"type": "socket", "data": {"addr": address, "server": false, reconnect: pause}});
        self.qmp.execute("chardev-add", json!({"id": format!("{id}-socket"), "backend": backend}))?;
        let device = json!({
            "driver": "vhost-user-blk-pci", "id": id, "bus": "free", "chardev": format!("{id}-socket"),
            "num-queues": disk.queues, "queue-size": disk.queue_size, "packed": disk.packed,
        });
        self.qmp.execute("device_add", device)?;
        Ok(())
    }

    /// The same for a network device.
    ///
    /// # Errors
    /// QEMU's.
    pub fn plug_nic(&mut self, nic: &Nic, id: &str) -> Result<()> {
        let [socket, net, device] = nic.plug_arguments(id, "free");
        for (command, arguments) in [("chardev-add", socket), ("netdev_add", net), ("device_add", device)] {
            self.qmp.execute(command, arguments)?;
        }
        Ok(())
    }

    /// Pulls a network device out again; its socket goes with it.
    ///
    /// # Errors
    /// As for [`Guest::unplug`].
    pub fn unplug_nic(&mut self, id: &str) -> Result<()> {
        self.qmp.execute("device_del", json!({"id": id}))?;
        self.qmp.wait_event("DEVICE_DELETED", id, COMMAND)?;
        self.qmp.execute("netdev_del", json!({"id": format!("{id}-net")}))?;
        Ok(())
    }

    /// Pulls it out again, and waits until the guest has let go of it.
    ///
    /// # Errors
    /// QEMU's, or when the guest holds on to it.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.qmp.execute("device_del", json!({"id": id}))?;
        self.qmp.wait_event("DEVICE_DELETED", id, COMMAND)?;
        // The event comes a moment before QEMU lets go of the socket.
        let socket = json!({"id": format!("{id}-socket")});
        let removed = wait_until(COMMAND, || Ok(self.qmp.execute("chardev-remove", socket.clone()).is_ok()))?;
        ensure!(removed, "QEMU keeps the socket of {id}");
        Ok(())
    }

    /// The QEMU process.
    pub fn qemu(&mut self) -> &mut Process {
        &mut self.qemu
    }

    /// Everything the guest's kernel printed.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Live-migrates to `target`, which waits for it, and ends this QEMU. Returns the guest at its new place.
    ///
    /// # Errors
    /// When either side gives up, or the migration has not converged after a few minutes.
    pub fn migrate_to(mut self, mut target: Guest) -> Result<Guest> {
        let uri = format!("unix:{}", target.dir.path().join("migration").display());
        target.qmp.execute("migrate-incoming", json!({"uri": uri}))?;
        // Emulated processors dirty memory faster than they can be copied on a busy machine; throttling converges.
        let capabilities = json!({"capabilities": [{"capability": "auto-converge", "state": true}]});
        self.qmp.execute("migrate-set-capabilities", capabilities)?;
        let limits = json!({"downtime-limit": 1000, "max-bandwidth": 4_u64 << 30});
        self.qmp.execute("migrate-set-parameters", limits)?;
        self.qmp.execute("migrate", json!({"uri": uri}))?;
        if let Err(error) = self.wait_migrated() {
            return Err(target.explain(self.explain(error)));
        }
        let resumed = target.wait_running();
        resumed.map_err(|error| target.explain(error))?;
        target.shell.resume(&self.shell);
        Ok(target)
    }

    fn wait_migrated(&mut self) -> Result<()> {
        let done = wait_until(Duration::from_secs(180), || {
            let info = self.qmp.execute("query-migrate", json!({}))?;
            match info["status"].as_str() {
                Some("completed") => Ok(true),
                Some("failed" | "cancelled") => bail!("Migration failed: {info}"),
                _ => Ok(false),
            }
        })?;
        if !done {
            bail!("The migration does not converge: {}", self.qmp.execute("query-migrate", json!({}))?);
        }
        Ok(())
    }

    fn wait_running(&mut self) -> Result<()> {
        let running =
            wait_until(COMMAND, || Ok(self.qmp.execute("query-status", json!({}))?["status"] == "running"))?;
        if !running {
            bail!("The guest does not run after its migration");
        }
        Ok(())
    }

    /// A backend that lacks packed rings or queues would be used without them in silence; a test that asks for them is
    /// about them.
    fn must_have(&mut self, disk: &Disk, letter: char, vcpus: u32) -> Result<()> {
        let bits = self.sh(&format!("cat /sys/block/vd{letter}/device/features"))?;
        // The file has a character a feature bit. VIRTIO_F_RING_PACKED is bit 34.
        let packed = bits.as_bytes().get(34) == Some(&b'1');
        ensure!(packed == disk.packed, "packed rings: wanted {}, negotiated {packed}", disk.packed);
        let queues = self.sh(&format!("ls /sys/block/vd{letter}/mq | wc -l"))?;
        let wanted = u32::from(disk.queues).min(vcpus);
        ensure!(
            queues.trim() == wanted.to_string(),
            "queues: wanted {wanted}, the guest has {}",
            queues.trim()
        );
        Ok(())
    }

    /// The same for a network device. Only the first pair of queues is used until the guest is told otherwise.
    fn must_have_nic(&mut self, nic: &Nic, index: usize) -> Result<()> {
        let device = format!("/sys/class/net/eth{index}");
        let bits = self.sh(&format!("cat {device}/device/features"))?;
        let packed = bits.as_bytes().get(34) == Some(&b'1');
        ensure!(packed == nic.is_packed(), "packed rings: wanted {}, negotiated {packed}", nic.is_packed());
        let pairs = self.sh(&format!("ls {device}/queues | grep -c rx"))?;
        ensure!(
            pairs.trim() == nic.pairs().to_string(),
            "queue pairs: wanted {}, the guest has {}",
            nic.pairs(),
            pairs.trim()
        );
        let mac = self.sh(&format!("cat {device}/address"))?;
        ensure!(mac.trim() == nic.mac(), "MAC: wanted {}, the guest has {}", nic.mac(), mac.trim());
        Ok(())
    }

    /// Adds what QEMU and the guest's kernel said last.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let (qemu, console) = (self.qemu.output(), self.console.text());
        let state = match self.qemu.exited() {
            Ok(Some(status)) => format!(" (ended, {status})"),
            _ => String::new(),
        };
        error.context(format!(
            "QEMU{state}: {}\nConsole of the guest:\n{}\n",
            qemu.trim(),
            tail(&console, 30)
        ))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console of the guest:\n{}", tail(&self.console.text(), 40));
        }
    }
}

fn accept(listener: &UnixListener, qemu: &mut Process) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let mut stream = None;
    wait_until(Duration::from_secs(30), || {
        stream = listener.accept().ok();
        if stream.is_none() {
            qemu.must_run()?;
        }
        Ok(stream.is_some())
    })?;
    let (stream, _) = stream.context("QEMU did not connect")?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Collects the first serial port on a thread of its own, which ends with QEMU.
struct Console {
    text: Arc<Mutex<Vec<u8>>>,
}

impl Console {
    fn new(mut stream: UnixStream) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&text);
        std::thread::spawn(move || {
            let mut chunk = [0; 1024];
            while let Ok(count) = stream.read(&mut chunk) {
                if count == 0 {
                    break;
                }
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
            }
        });
        Self { text }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
