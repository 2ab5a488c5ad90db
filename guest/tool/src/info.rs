//! `info`: the device, and whether it works.

use guest_driver::compress::{
    By, Checksum, Client, Config, Format, OpenError, Options, Request, Status, feature,
};

use crate::ciphers;
use crate::cli::{Device, Info};
use crate::failure::Trouble;
use crate::run::open;

/// Bytes that the device is tried with.
const TRIAL: usize = 64 << 10;

/// Shows everything.
pub fn run(command: &Info, device: &Device) -> Result<(), Trouble> {
    if command.crypto {
        return ciphers::run(command, device);
    }
    // However short, a request of this command is meant for the device.
    let mut client = open(device, Options { small: 0, ..device.options() })?;
    let Some(config) = client.config().copied() else {
        let problem = client.problem().map_or_else(String::new, OpenError::in_full);
        println!("device          none: {problem}");
        println!("in software     {}", Format::ALL.map(Format::name).join(", "));
        return Ok(());
    };
    if let Some([place, memory]) = client.describe() {
        println!("device          {place}");
        println!("memory          {memory}");
    }
    show(&config, &client);
    try_out(&mut client, &config)
}

fn show(config: &Config, client: &Client) {
    println!("queues          {} of {} driven", client.queues(), config.num_queues);
    let features =
        [(feature::STREAM, "streams"), (feature::CHECKSUM, "checksums"), (feature::VERIFY, "verification")];
    let features = features.iter().filter(|(bit, _)| config.features & bit != 0).map(|(_, name)| *name);
    println!("features        {}", words(features));
    for format in Format::ALL {
        let mut can = Vec::new();
        if config.compresses(format) {
            let levels = config.levels(format);
            can.push(format!("compresses at levels {} to {}", levels.min, levels.max));
        }
        if config.decompresses(format) {
            can.push("decompresses".to_owned());
        }
        let text = if can.is_empty() { "no".to_owned() } else { can.join(", ") };
        println!("{:<16}{text}", format.name());
    }
    let sums = Checksum::ALL.into_iter().filter(|sum| *sum != Checksum::None && config.sums(*sum));
    println!("checksums       {}", words(sums.map(Checksum::name)));
    println!("largest source  {} KiB, result {} KiB", config.max_src >> 10, config.max_dst >> 10);
    if let Some((source, result)) = client.limits() {
        println!("driven with     {} KiB, result {} KiB", source >> 10, result >> 10);
    }
    println!("streams         {}", config.max_streams);
    println!("good depth      {}", config.batch);
}

fn words<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<_> = all.collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// One request of each format, there and back.
fn try_out(client: &mut Client, config: &Config) -> Result<(), Trouble> {
    let text = b"It was the best of times, it was the worst of times. ";
    let len = TRIAL.min(client.limits().map_or(TRIAL, |(source, _)| source));
    let data: Vec<u8> = text.iter().copied().cycle().take(len).collect();
    let mut failed = Vec::new();
    for format in Format::ALL.into_iter().filter(|&format| config.compresses(format)) {
        let packed = client.run(&Request::compress(format, &data));
        let mut right = packed.status == Status::Ok && packed.by == By::Device;
        if right && config.decompresses(format) {
            let back = client.run(&Request::decompress(format, &packed.output, data.len()));
            right = back.status == Status::Ok && back.by == By::Device && back.output == data;
        }
        if !right {
            failed.push(format.name());
        }
    }
    if failed.is_empty() {
        println!("tried           works");
        return Ok(());
    }
    println!("tried           fails: {}", failed.join(", "));
    Err(Trouble::Error(format!("the device fails at {}", failed.join(", "))))
}
