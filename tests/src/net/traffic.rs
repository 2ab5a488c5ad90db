//! Pings, streams and files from one host to another, all checked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::host::Host;
use crate::process::wait_until;

const PATIENCE: Duration = Duration::from_secs(30);
const FILE_PORT: u16 = 9000;

/// Gives a device an address of a /24 network and brings it up.
///
/// # Errors
/// When the host does not have the device.
pub fn up(host: &mut impl Host, device: &str, address: &str) -> Result<()> {
    host.run(&format!("ip addr add {address}/24 dev {device} && ip link set {device} up"))?;
    Ok(())
}

/// Waits until `address` answers.
///
/// # Errors
/// When it does not.
pub fn reaches(from: &mut impl Host, address: &str) -> Result<()> {
    let script = format!("ping -n -c 1 -W 1 {address} > /dev/null 2>&1 && echo yes || true");
    let reached = wait_until(PATIENCE, || Ok(from.run(&script)?.trim() == "yes"))?;
    ensure!(reached, "{address} does not answer");
    Ok(())
}

/// One ping must fail.
///
/// # Errors
/// When `address` answers.
pub fn does_not_reach(from: &mut impl Host, address: &str) -> Result<()> {
    let script = format!("ping -n -c 1 -W 1 {address} > /dev/null 2>&1 && echo yes || true");
    ensure!(from.run(&script)?.trim().is_empty(), "{address} answers");
    Ok(())
}

/// Echo requests of these payload sizes that may not be fragmented come back unchanged: `ping` compares them.
///
/// # Errors
/// When any is changed, or five do not come back of six.
pub fn ping(from: &mut impl Host, address: &str, sizes: &[usize]) -> Result<()> {
    for size in sizes {
        // Without -w it waits for the last answer no longer than twice the time the others took, whatever -W says.
        let script = format!("ping -n -c 5 -i 0.05 -w 20 -M do -s {size} -p a5c3 {address} 2>&1 || true");
        let report = from.run(&script)?;
        let came_back = [(5, 5), (6, 5), (6, 6)];
        let line = |(sent, got)| format!("{sent} packets transmitted, {got} received");
        let complete = came_back.into_iter().any(|counts| report.contains(&line(counts)));
        ensure!(complete && !report.contains("wrong data"), "Of {size} bytes to {address}:\n{report}");
    }
    Ok(())
}

/// What iperf3 says at the end.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Datagrams sent, of UDP.
    pub datagrams: u64,
    /// Datagrams that did not arrive.
    pub lost: u64,
}

impl Flow {
    fn read(report: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(report).with_context(|| format!("iperf3 says: {report}"))?;
        if let Some(error) = report["error"].as_str() {
            anyhow::bail!("iperf3: {error}");
        }
        let end = &report["end"];
        let udp = end.get("sum").unwrap_or(&Value::Null);
        let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { udp };
        Ok(Self {
            bytes: sum["bytes"].as_u64().with_context(|| format!("iperf3 counts nothing: {end}"))?,
            seconds: sum["seconds"].as_f64().unwrap_or(0.0),
            datagrams: udp["packets"].as_u64().unwrap_or(0),
            lost: udp["lost_packets"].as_u64().unwrap_or(0),
        })
    }

    /// Bits a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds.max(0.001)
    }
}

/// Starts an iperf3 server in the background.
///
/// # Errors
/// When the host is gone.
pub fn serve(host: &mut impl Host) -> Result<()> {
    host.background("iperf3 -s")?;
    let script = "grep -q ' 0A ' /proc/net/tcp6 /proc/net/tcp && echo yes || true";
    let listens = wait_until(PATIENCE, || Ok(host.run(script)?.contains("yes")))?;
    ensure!(listens, "iperf3 does not listen");
    Ok(())
}

/// Runs iperf3 against the server at `address`.
///
/// # Errors
/// When it fails.
pub fn iperf(from: &mut impl Host, address: &str, options: &str) -> Result<Flow> {
    // The server may not have noticed yet that the client before has gone.
    let script = format!(
        "for try in $(seq 20); do report=$(iperf3 -c {address} --json {options}); \
         case \"$report\" in *'server is busy'*) sleep 0.3;; *) break;; esac; done; echo \"$report\""
    );
    Flow::read(&from.run(&script)?)
}

/// A run of iperf3 in the background.
pub struct Running {
    report: String,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// When the host is gone.
    pub fn start(from: &mut impl Host, address: &str, options: &str) -> Result<Self> {
        let report = format!("{}/iperf.json", from.scratch());
        let run =
            format!("iperf3 -c {address} --json {options} > {report}.part 2>&1; mv {report}.part {report}");
        from.background(&run)?;
        Ok(Self { report })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it fails or takes longer than `timeout`.
    pub fn finish(self, from: &mut impl Host, timeout: Duration) -> Result<Flow> {
        let script = format!("cat {} 2>/dev/null || true", self.report);
        let mut report = String::new();
        let ended = wait_until(timeout, || {
            report = from.run(&script)?;
            std::thread::sleep(Duration::from_millis(100));
            Ok(!report.is_empty())
        })?;
        ensure!(ended, "iperf3 has not ended after {timeout:?}");
        Flow::read(&report)
    }
}

/// Sends `mib` MiB of random bytes over TCP; what arrives must be the same.
///
/// # Errors
/// When it is not.
pub fn send_file(from: &mut impl Host, to: &mut impl Host, address: &str, mib: u32) -> Result<()> {
    let (sent, got) = (format!("{}/sent", from.scratch()), format!("{}/got", to.scratch()));
    from.run(&format!("dd if=/dev/urandom of={sent} bs=1M count={mib} 2>/dev/null"))?;
    to.run(&format!("rm -f {got} {got}.done"))?;
    to.background(&format!("busybox nc -l -p {FILE_PORT} -e sh -c 'cat > {got}; touch {got}.done'"))?;
    wait_listens(to, FILE_PORT)?;
    from.run(&format!("busybox nc {address} {FILE_PORT} -e cat {sent}"))?;
    let script = format!("ls {got}.done 2>/dev/null || true");
    let done = wait_until(PATIENCE, || Ok(!to.run(&script)?.is_empty()))?;
    ensure!(done, "The receiver sees no end");
    let sums = (from.run(&format!("md5sum < {sent}"))?, to.run(&format!("md5sum < {got}"))?);
    ensure!(sums.0 == sums.1, "{mib} MiB arrive changed");
    to.run(&format!("rm -f {got} {got}.done"))?;
    Ok(())
}

/// Waits for a listening TCP socket.
fn wait_listens(host: &mut impl Host, port: u16) -> Result<()> {
    // proc_net_tcp(5): the local port in hex, then the remote address, then the state; 0A is TCP_LISTEN.
    let script =
        format!("grep -qE ':{port:04X} [0-9A-F:]+ 0A ' /proc/net/tcp /proc/net/tcp6 && echo yes || true");
    let listens = wait_until(PATIENCE, || Ok(host.run(&script)?.trim() == "yes"))?;
    ensure!(listens, "Nobody listens on port {port}");
    Ok(())
}

/// A stream of known bytes that goes on until told to stop, each MiB compared where it arrives.
pub struct Stream {
    passes: String,
    failed: String,
    stop: String,
    done: String,
}

impl Stream {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not get through.
    pub fn start(from: &mut impl Host, to: &mut impl Host, address: &str) -> Result<Self> {
        send_file(from, to, address, 1)?;
        let (here, there) = (from.scratch(), to.scratch());
        // Both ends make the same bytes: numbers, so that no two pages are alike.
        let known = "seq -w 1 150000 | head -c 1048576";
        from.run(&format!("({known}) > {here}/known; rm -f {here}/stop"))?;
        to.run(&format!("({known}) > {there}/known; rm -f {there}/failed {there}/passes {there}/done"))?;
        to.background(&format!(
            "cd {there}; busybox nc -l -p {FILE_PORT} -e sh -c 'passes=0; \
             while dd of=part bs=1M count=1 iflag=fullblock 2>/dev/null && [ -s part ]; do \
             cmp part known >> failed 2>&1 || break; \
             passes=$((passes + 1)); echo $passes > passes.new; mv passes.new passes; done; touch done'"
        ))?;
        wait_listens(to, FILE_PORT)?;
        from.background(&format!(
            "busybox nc {address} {FILE_PORT} -e sh -c 'while [ ! -e {here}/stop ]; do cat {here}/known; done'"
        ))?;
        let stream = Self {
            passes: format!("{there}/passes"),
            failed: format!("{there}/failed"),
            stop: format!("{here}/stop"),
            done: format!("{there}/done"),
        };
        stream.goes_on(to)?;
        Ok(stream)
    }

    /// Waits for more to arrive.
    ///
    /// # Errors
    /// When it stands still, or arrives changed.
    pub fn goes_on(&self, to: &mut impl Host) -> Result<()> {
        let before = self.passes(to)?;
        let more = wait_until(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(50));
            Ok(self.passes(to)? > before)
        })?;
        ensure!(more, "The stream stands still after {before} MiB");
        Ok(())
    }

    /// Whole MiB compared so far.
    ///
    /// # Errors
    /// When one differed.
    pub fn passes(&self, to: &mut impl Host) -> Result<u64> {
        let failed = to.run(&format!("cat {} 2>/dev/null || true", self.failed))?;
        ensure!(failed.is_empty(), "The stream arrives changed: {failed}");
        let passes = to.run(&format!("cat {} 2>/dev/null || echo 0", self.passes))?;
        Ok(passes.trim().parse().unwrap_or(0))
    }

    /// Ends it; everything that was sent must arrive.
    ///
    /// # Errors
    /// When it does not.
    pub fn stop(self, from: &mut impl Host, to: &mut impl Host) -> Result<u64> {
        from.run(&format!("touch {}", self.stop))?;
        let script = format!("ls {} 2>/dev/null || true", self.done);
        let ended = wait_until(PATIENCE, || Ok(!to.run(&script)?.is_empty()))?;
        ensure!(ended, "The stream does not end");
        self.passes(to)
    }
}
