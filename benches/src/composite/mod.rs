//! `vhostd-bench composite`: whether it pays to have somebody else compress.
//!
//! A submitter writes a compressible data set through vhostd-blk, whose bandwidth is limited, and reads it back, in three
//! ways: as it is; compressed by zlib on the submitter's own core; compressed by vhostd-compress on another one. The
//! submitter is one thread of this process and attached to both daemons as a guest is: one guest memory, a socket for each
//! device, compressed records go from one device to the other without being copied, and it sleeps when it has nothing to do.
//! All three ways have the same number of records under way, and compress one while the disk writes another.
//!
//! Records that save less than an eighth are stored as they are, and each begins on a block of 4 KiB, as in a file system.

mod options;
mod plot;
mod stage;
mod submitter;
mod table;
mod way;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::compress::foreign::Zlib;
use crate::compress::material::Material;
use crate::process::beside_me;
use crate::{output, progress};
pub use options::{BadOptions, Options};
use stage::Daemons;
pub use stage::{Meter, Sockets, submit};
pub use table::{Aim, Cell, Phase, Run, Table};
pub use way::Way;

/// Measures, prints, writes and draws; exit code 2 for options that contradict each other.
pub fn main(options: &Options) -> Result<ExitCode> {
    if let Err(error) = options.check() {
        eprintln!("vhostd-bench: {error}");
        return Ok(ExitCode::from(2));
    }
    let table = measure(options)?;
    print!("{}", table.text());
    output::write(options.json.as_ref(), || Ok(serde_json::to_string_pretty(&table)? + "\n"))?;
    output::write(options.markdown.as_ref(), || Ok(table.markdown()))?;
    output::write(options.plot.as_ref(), || plot::draw(&table))?;
    Ok(ExitCode::SUCCESS)
}

/// Every way at every bandwidth, round by round, each time on fresh daemons.
pub fn measure(options: &Options) -> Result<Table> {
    let daemon = |given: &Option<_>, name| given.clone().map_or_else(|| beside_me(name), Ok);
    let daemons = Daemons {
        blk: daemon(&options.blk_daemon, "vhostd-blk")?,
        compress: daemon(&options.compress_daemon, "vhostd-compress")?,
    };
    let corpus = options.corpus.load(options.corpus_size as usize, options.seed)?;
    let material = Material::of(corpus, options.record as usize)?;
    let cells =
        options.bandwidths().into_iter().flat_map(|bandwidth| Way::ALL.map(|way| Cell::new(bandwidth, way)));
    let mut table = Table {
        experiment: options.text(),
        software: Zlib::name(),
        corpus: format!("{}, crc32 {:08x}", options.corpus, material.sum()),
        rounds: options.rounds,
        bandwidth: options.bandwidth,
        cells: cells.collect(),
    };
    let bar = progress::steps(u64::from(options.rounds) * table.cells.len() as u64, options.quiet);
    for round in 1..=options.rounds {
        for cell in &mut table.cells {
            let (way, bandwidth) = (cell.way, cell.bandwidth);
            bar.set_message(format!("round {round}: {} at {bandwidth} MB/s", way.name()));
            let run = stage::run(options, &daemons, &material, way, bandwidth);
            cell.runs.push(run.with_context(|| format!("{} at {bandwidth} MB/s", way.name()))?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(table)
}
