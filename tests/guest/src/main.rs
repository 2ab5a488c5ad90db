//! Runs in a test guest: gives the kernel's crypto drivers work through AF_ALG and compares what they make of it with
//! another driver's results, byte by byte.
//!
//! It is linked statically and needs nothing but the kernel. `cargo xtask testbed` puts it into the crypto image.

mod af_alg;
mod check;
mod load;
mod options;
mod sessions;

use std::process::ExitCode;

use anyhow::{Result, bail};
use options::Options;

const USAGE: &str = "\
Usage: af-alg VERB [OPTION=VALUE]...

check      Encrypts and decrypts random data and compares with the oracle.
           sizes=LIST     lengths in bytes: 16,64-1024/16,65536 (default: many)
           rounds=N       for each size and key length (1)
sessions   Takes up a new key for each of many requests; some keys stay in use to the end.
           count=N        keys (1000)
           kept=N         of these, how many are in use at a time (64)
load       Encrypts and decrypts without a pause, checks each result, and reports rates and latencies.
           size=BYTES     (4096)
           seconds=N      how long (5), or
           stop=PATH      until this file is there

driver=NAME    what is tested (virtio_crypto_aes_cbc)
oracle=NAME    what it is compared with (cbc(aes-generic))
key=BYTES      16, 24 or 32; `check` takes all by default
jobs=N         threads, each with sockets of its own (1)
seed=N         of the random data (1)
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("af-alg: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let verb = args.next().unwrap_or_default();
    let mut options = Options::parse(args)?;
    match verb.as_str() {
        "check" => check::run(&mut options),
        "sessions" => sessions::run(&mut options),
        "load" => load::run(&mut options),
        _ => bail!("There is no verb `{verb}`.\n{USAGE}"),
    }
}
