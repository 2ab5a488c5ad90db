//! Work for the guest's virtio-crypto driver, through AF_ALG, by the program in `tests/guest`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::process::wait_until;

/// What the kernel calls the driver of the device's AES-CBC.
pub const CBC: &str = "virtio_crypto_aes_cbc";
/// The driver of its RSA.
pub const RSA: &str = "virtio-crypto-rsa";

/// What `af-alg load` reports.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Requests with a right result; any other ends the run.
    pub requests: u64,
    /// Requests a second.
    pub rate: f64,
    /// The longest that any took.
    pub longest: Duration,
}

impl Rates {
    fn parse(line: &str) -> Result<Self> {
        let field = |name: &str| -> Result<f64> {
            let mut pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
            let value =
                pairs.find(|(key, _)| *key == name).with_context(|| format!("No {name} in: {line}"))?;
            Ok(value.1.parse()?)
        };
        Ok(Self {
            requests: field("requests")? as u64,
            rate: field("rate")?,
            longest: Duration::from_micros(field("longest_us")? as u64),
        })
    }
}

/// The kernel has tested `driver` when it was registered, was content, and complains about nothing.
///
/// # Errors
/// With what the kernel says.
pub fn selftest_passed(guest: &mut Guest, driver: &str) -> Result<()> {
    let table = guest.sh("cat /proc/crypto")?;
    let entry = table.split("\n\n").find(|entry| field(entry, "driver") == Some(driver));
    let entry = entry.with_context(|| format!("The kernel has no driver {driver}: {table}"))?;
    ensure!(field(entry, "selftest") == Some("passed"), "The kernel's self-test of {driver}: {entry}");
    no_complaints(guest)
}

/// Whether the kernel has a driver of that name.
///
/// # Errors
/// Those of the guest.
pub fn is_registered(guest: &mut Guest, driver: &str) -> Result<bool> {
    let table = guest.sh("cat /proc/crypto")?;
    Ok(table.split("\n\n").any(|entry| field(entry, "driver") == Some(driver)))
}

fn field<'a>(entry: &'a str, name: &str) -> Option<&'a str> {
    entry
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, v)| v.trim())
}

/// An error if the guest's kernel has complained about a cipher or a device.
///
/// # Errors
/// With its words.
pub fn no_complaints(guest: &mut Guest) -> Result<()> {
    const WORDS: &str =
        "alg: .*failed|virtio.*(err|fail|invalid|not a head)|WARNING:|BUG:|Oops|hung_task|blocked for more";
    let log = guest.sh(&format!("dmesg | grep -E '{WORDS}'; true"))?;
    ensure!(log.trim().is_empty(), "The guest's kernel complains: {log}");
    Ok(())
}

/// Runs `af-alg` with these words in the guest, to its end.
///
/// # Errors
/// When a result is wrong, or it takes longer than `timeout`.
pub fn run(guest: &mut Guest, words: &str, timeout: Duration) -> Result<String> {
    guest.sh_for(&format!("af-alg {words}"), timeout)
}

/// A load that runs until it is told to end; one or more processes, each with several threads.
pub struct Load {
    processes: u32,
}

impl Load {
    /// Starts `processes` of `af-alg load` with these options, in the background.
    ///
    /// # Errors
    /// Those of the guest.
    pub fn start(guest: &mut Guest, processes: u32, words: &str) -> Result<Self> {
        guest.sh("rm -f /tmp/stop /tmp/load.*")?;
        for process in 0..processes {
            guest.sh(&format!(
                "(af-alg load stop=/tmp/stop seed={process} {words} > /tmp/load.{process} 2> /tmp/load.{process}.err; \
                 echo $? > /tmp/load.{process}.code) > /dev/null 2>&1 &"
            ))?;
        }
        Ok(Self { processes })
    }

    /// An error if any of it has ended, which before [`Load::stop`] it only does after a failure.
    ///
    /// # Errors
    /// With its words.
    pub fn check(&self, guest: &mut Guest) -> Result<()> {
        let ended = guest.sh("cat /tmp/load.*.code /tmp/load.*.err 2>/dev/null; true")?;
        ensure!(ended.is_empty(), "The load has ended: {ended}");
        no_complaints(guest)
    }

    /// Lets it end; returns what each process did.
    ///
    /// # Errors
    /// When a request failed, had a wrong result, or never came back.
    pub fn stop(self, guest: &mut Guest) -> Result<Vec<Rates>> {
        guest.sh("touch /tmp/stop")?;
        let ended = wait_until(Duration::from_secs(60), || {
            Ok(guest.sh("ls /tmp/load.*.code 2>/dev/null | wc -l")?.trim() == self.processes.to_string())
        })?;
        let errors = guest.sh("cat /tmp/load.*.err")?;
        ensure!(ended, "Requests never came back. {errors}");
        ensure!(errors.is_empty(), "The load failed: {errors}");
        no_complaints(guest)?;
        (0..self.processes)
            .map(|process| Rates::parse(&guest.sh(&format!("cat /tmp/load.{process}"))?))
            .collect()
    }
}
