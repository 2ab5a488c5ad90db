//! `vhostd-bench`: load generator, demo, comparison and ring figures for vhost-user backends.

use std::process::ExitCode;

use benches::{blackout, blk, compare, composite, compress, crypto, demo, idle, net, ring, testpmd};
use clap::{Parser, Subcommand};

/// Drives, demonstrates and compares vhost-user backends without a VM
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Puts a load on any vhost-user-blk backend and measures it
    Blk(blk::Options),
    /// Plays guests on any vhost-user-net backend and measures it
    Net(net::Options),
    /// Puts a load on any virtio-crypto backend, or on an engine alone, and measures it
    Crypto(crypto::Options),
    /// Compares the modes of vhostd-crypto: interrupts, timers, the heuristic, polling
    CryptoModes(crypto::modes::Options),
    /// Puts a load on a compression device, or on an engine alone, and measures it
    Compress(compress::Options),
    /// Compares the modes of vhostd-compress: interrupts, timers, the heuristic, polling
    CompressModes(compress::modes::Options),
    /// Writes a compressible data set to a slow disk and reads it back: as it is, compressed in software, and offloaded
    Composite(composite::Options),
    /// Drives a vhost-user-net backend with DPDK's virtio-user
    VirtioUser(testpmd::Options),
    /// Shows vhostd-blk at work: every byte verified, a kill survived, idle without CPU time
    Demo(demo::Options),
    /// Compares backends round by round after a specification
    Compare(compare::Options),
    /// Measures what idle disks or ports cost in CPU time and memory
    Idle(idle::Options),
    /// Kills vhostd-net while frames flow and measures what that costs
    Blackout(blackout::Options),
    /// Compares our rings with virtio-queue under vhost-user-backend, in ns or instructions per chain
    Ring(ring::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Blk(options) => blk::main(&options),
        Command::Net(options) => net::main(&options),
        Command::Crypto(options) => crypto::main(&options),
        Command::CryptoModes(options) => crypto::modes::main(&options),
        Command::Compress(options) => compress::main(&options),
        Command::CompressModes(options) => compress::modes::main(&options),
        Command::Composite(options) => composite::main(&options),
        Command::VirtioUser(options) => testpmd::main(&options),
        Command::Demo(options) => demo::main(&options),
        Command::Compare(options) => compare::main(&options),
        Command::Idle(options) => idle::main(&options),
        Command::Blackout(options) => blackout::main(&options),
        Command::Ring(options) => ring::main(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("vhostd-bench: {error:#}");
        ExitCode::FAILURE
    })
}
