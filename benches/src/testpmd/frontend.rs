//! testpmd with virtio-user as the driver of one guest or two.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::PACKAGE;
use super::console::Testpmd;
use super::options::{Load, Mode};
use crate::clock::Clock;
use crate::cpu;
use crate::net::frame::mac;
use crate::net::meter::Meter;
use crate::net::{Counted, Report};
use crate::process::{find_program, listener_pid};

/// Program that is looked for.
const PROGRAM: &str = "dpdk-testpmd";

/// Puts `load` on the backend whose ports are at `sockets`. `meter` knows the backend's busy cycles.
pub fn run(sockets: &[PathBuf], load: &Load, mut meter: Option<&mut dyn Meter>) -> Result<Report> {
    load.check(sockets.len())?;
    if find_program(PROGRAM).is_none() {
        bail!("{PROGRAM} is not there; install the Debian package {PACKAGE}");
    }
    let cpu = load.cpus.as_ref().and_then(|cpus| cpus.0.first().copied());
    let cpu = cpu.map_or_else(|| Ok(cpu::allowed_cpus()?.first().copied().unwrap_or(0)), anyhow::Ok)?;
    let backend = listener_pid(&sockets[0]);
    let mut testpmd = Testpmd::start(&command_line(sockets, load, cpu), &[cpu])?;
    check_path(&mut testpmd, load)?;
    testpmd.ask("start tx_first 32", |text| text.contains("testpmd> "))?;
    std::thread::sleep(load.warmup);
    let before = Sample::take(&mut testpmd, load, backend)?;
    testpmd.clear_cycles()?;
    meter.as_mut().map_or(Ok(()), |meter| meter.begin())?;
    std::thread::sleep(load.runtime);
    let busy = meter.as_mut().map_or(Ok(None), |meter| meter.end())?;
    let driver_cycles = testpmd.busy_cycles()?;
    let after = Sample::take(&mut testpmd, load, backend)?;
    testpmd.quit();
    ensure!(after.packets > before.packets, "No frame has come back");
    let clock = Clock::new();
    let seconds = (after.time - before.time).as_secs_f64();
    let packets = after.packets - before.packets;
    let counted = Counted {
        load: describe(load),
        packets,
        bytes: packets * u64::from(load.size),
        seconds,
        cpu: after.cpu.zip(before.cpu).and_then(|(now, then)| now.checked_sub(then)),
        busy,
        driver_load: clock.nanos(driver_cycles.unwrap_or(0.0) as u64) as f64 / 1e9 / seconds.max(1e-9),
    };
    Ok(Report::counted(counted, &clock))
}

/// Counters at one moment.
struct Sample {
    time: Instant,
    packets: u64,
    cpu: Option<Duration>,
}

impl Sample {
    fn take(testpmd: &mut Testpmd, load: &Load, backend: Option<i32>) -> Result<Self> {
        let packets = testpmd.received(load.ports())?;
        let cpu = backend.and_then(|pid| cpu::process_cpu_time(pid).ok());
        Ok(Self { time: Instant::now(), packets, cpu })
    }
}

/// virtio-user falls back to another path with no more than a notice: hold its log against what was asked for.
fn check_path(testpmd: &mut Testpmd, load: &Load) -> Result<()> {
    let chosen = testpmd.chosen_paths()?;
    let word = load.path.evidence();
    let receive = chosen.iter().find(|path| path.contains("Rx path"));
    ensure!(
        receive.is_some_and(|path| path.contains(word)),
        "virtio-user was to take its {} path and says: {}",
        load.path.name(),
        chosen.join(", ")
    );
    Ok(())
}

/// Main thread and forwarding thread share a CPU: the main thread sleeps at the prompt.
fn command_line(sockets: &[PathBuf], load: &Load, cpu: usize) -> Vec<String> {
    let prefix = format!("vhostd-bench-{}", std::process::id());
    let mut words: Vec<String> = format!(
        "{PROGRAM} --lcores 0@{cpu},1@{cpu} --no-huge -m 256 --no-pci --file-prefix={prefix} \
         --log-level=pmd.net.virtio.init,8"
    )
    .split_whitespace()
    .map(str::to_owned)
    .collect();
    if load.path.wants_wide_vectors() {
        words.push("--force-max-simd-bitwidth=512".to_owned());
    }
    let arguments = load.path.arguments(load.ring_size);
    for (port, socket) in sockets.iter().enumerate() {
        let (mac, path) = (show_mac(port), socket.display());
        words.extend([
            "--vdev".to_owned(),
            format!("net_virtio_user{port},path={path},mac={mac},{arguments}"),
        ]);
    }
    let topology = if load.mode == Mode::Pair { "paired" } else { "loop" };
    let (size, ring) = (load.size, load.ring_size);
    let forward = format!(
        "-- -i --no-mlockall --total-num-mbufs=8192 --forward-mode=mac --txpkts={size} --txd={ring} --rxd={ring} \
         --port-topology={topology} --record-core-cycles"
    );
    words.extend(forward.split_whitespace().map(str::to_owned));
    if load.mode == Mode::Pair {
        // A frame from port 0 is for the guest at port 1, and the other way round: a switch can learn.
        words.extend([format!("--eth-peer=0,{}", show_mac(1)), format!("--eth-peer=1,{}", show_mac(0))]);
    }
    words
}

fn show_mac(guest: usize) -> String {
    mac(guest).map(|byte| format!("{byte:02x}")).join(":")
}

fn describe(load: &Load) -> String {
    let mode = if load.mode == Mode::Pair { "pair" } else { "loopback" };
    format!("virtio-user {mode} size={} ring={} {}", load.size, load.ring_size, load.path.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_a_device_for_each_socket_and_peers_for_a_pair() {
        let load = Load::parse("pair --path packed-vector --size 1518").unwrap();
        let line = command_line(&["/a".into(), "/b".into()], &load, 3).join(" ");
        for part in [
            "--lcores 0@3,1@3",
            "--force-max-simd-bitwidth=512",
            "--vdev net_virtio_user0,path=/a,mac=52:54:00:00:00:01,queues=1,queue_size=256,packed_vq=1",
            "net_virtio_user1,path=/b,mac=52:54:00:00:00:02",
            "--txpkts=1518",
            "--port-topology=paired",
            "--eth-peer=0,52:54:00:00:00:02 --eth-peer=1,52:54:00:00:00:01",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let line = command_line(&["/a".into()], &Load::parse("loopback").unwrap(), 0).join(" ");
        assert!(!line.contains("eth-peer") && !line.contains("simd"), "{line}");
    }
}
