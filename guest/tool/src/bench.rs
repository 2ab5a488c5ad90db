//! `bench`: how fast the device is, and software beside it.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use guest_driver::compress::{Client, Format, Options, Place, Request, Status};
use hdrhistogram::Histogram;

use crate::cli::{Bench, Device};
use crate::cpu;
use crate::failure::{Failure, Trouble};
use crate::flights::Flights;
use crate::run::client;
use crate::signal;

/// No more of the file is used.
const MAX_LEN: u64 = 64 << 20;

/// One direction, measured.
struct Figures {
    bytes: u64,
    seconds: f64,
    cpu: f64,
    latencies: Histogram<u64>,
}

/// A piece of the file, and what it was compressed to.
struct Piece {
    plain: Vec<u8>,
    packed: Vec<u8>,
}

/// Measures and shows a table.
pub fn run(command: &Bench, at: &Device) -> Result<(), Trouble> {
    let name = command.file.display().to_string();
    let failed = |failure: Failure| Trouble::of(&name, &failure);
    let data = read(command).map_err(failed)?;
    let mut device = client(at)?;
    let options = Options { place: Place::Nowhere, ..at.options() };
    let mut software = Client::open(options);
    let format = command.format.into();
    let chunk = device.compress_limit().map_or(at.chunk, |most| at.chunk.min(most));
    let pieces = pieces(&mut software, format, command.level.0, &data, chunk).map_err(failed)?;
    let packed: usize = pieces.iter().map(|piece| piece.packed.len()).sum();
    println!(
        "{name}: {} bytes in {} pieces, {} level {}, ratio {:.3}, {} in flight",
        data.len(),
        pieces.len(),
        format.name(),
        command.level.0,
        data.len() as f64 / packed as f64,
        at.depth
    );
    println!(
        "{:<10} {:<11} {:>9} {:>10} {:>10} {:>10} {:>8}",
        "", "", "MB/s", "p50 us", "p99 us", "max us", "CPU %"
    );
    let mut clients = vec![("software", &mut software)];
    if device.config().is_some() {
        clients.insert(0, ("device", &mut device));
    }
    for (who, client) in &mut clients {
        for compresses in [true, false] {
            let figures = measure(client, command, at.depth, &pieces, compresses).map_err(failed)?;
            figures.show(who, if compresses { "compress" } else { "decompress" });
        }
    }
    let counters = device.counters();
    if device.config().is_some() {
        println!(
            "requests: {} by the device, {} in software instead",
            counters.device,
            counters.in_software()
        );
    }
    Ok(())
}

fn read(command: &Bench) -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    let file = File::open(&command.file).map_err(Failure::Read)?;
    file.take(MAX_LEN).read_to_end(&mut data).map_err(Failure::Read)?;
    if data.is_empty() { Err(Failure::Truncated) } else { Ok(data) }
}

/// Everything once, in software.
fn pieces(
    client: &mut Client,
    format: Format,
    level: i32,
    data: &[u8],
    chunk: usize,
) -> Result<Vec<Piece>, Failure> {
    let piece = |plain: &[u8]| {
        signal::check()?;
        let packed = client.run(&Request::compress(format, plain).level(level)).into_result();
        let packed = packed.map_err(|status| Failure::Engine("compressed", status.name()))?;
        Ok(Piece { plain: plain.to_vec(), packed })
    };
    data.chunks(chunk).map(piece).collect()
}

fn measure(
    client: &mut Client,
    command: &Bench,
    depth: u16,
    pieces: &[Piece],
    compresses: bool,
) -> Result<Figures, Failure> {
    let format = command.format.into();
    let limit = Duration::from_secs_f64(command.seconds.clamp(0.1, 3600.0));
    let mut flights: Flights<Instant> = Flights::new(depth.into());
    let mut latencies = Histogram::new(3).map_err(|_| Failure::Unsupported)?;
    let (begin, cpu_before) = (Instant::now(), cpu::used());
    let mut bytes = 0;
    let mut ended = |since: &Instant, done: &guest_driver::compress::Completion| {
        latencies.record(since.elapsed().as_micros() as u64).map_err(|_| Failure::Unsupported)?;
        match done.status {
            Status::Ok => signal::check(),
            status => Err(Failure::Engine("done", status.name())),
        }
    };
    'time: loop {
        for piece in pieces {
            let request = if compresses {
                Request::compress(format, &piece.plain).level(command.level.0)
            } else {
                Request::decompress(format, &piece.packed, piece.plain.len())
            };
            flights.start(client, &request, Instant::now(), &mut ended)?;
            bytes += piece.plain.len() as u64;
            if begin.elapsed() >= limit {
                break 'time;
            }
        }
    }
    flights.finish(client, &mut ended)?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = (cpu::used() - cpu_before).as_secs_f64();
    Ok(Figures { bytes, seconds, cpu, latencies })
}

impl Figures {
    fn show(&self, who: &str, what: &str) {
        println!(
            "{who:<10} {what:<11} {:>9.1} {:>10} {:>10} {:>10} {:>8.0}",
            self.bytes as f64 / self.seconds / 1e6,
            self.latencies.value_at_quantile(0.5),
            self.latencies.value_at_quantile(0.99),
            self.latencies.max(),
            100.0 * self.cpu / self.seconds
        );
    }
}
