//! Decompression of a file: parts whose ends can be told side by side, everything else as a stream.

use std::io::{Read, Write};

use guest_driver::compress::{Client, Completion, Direction, Flush, Format, Request, Status, StreamError};

use crate::archive::{Extent, MAGIC_LEN, continues, detect, extent};
use crate::failure::Failure;
use crate::flights::Flights;
use crate::pack::Totals;
use crate::progress::Progress;
use crate::signal;
use crate::window::Window;

/// Bytes of result that a step of a stream has room for, where nothing else limits it.
const STEP: usize = 256 << 10;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes.
    pub totals: Totals,
    /// The format it had.
    pub format: Format,
    /// Something follows that is no part of it.
    pub garbage: bool,
}

/// Decompresses `input` to `output`. Without a `format` it is told by the first bytes.
pub fn unpack(
    client: &mut Client,
    format: Option<Format>,
    depth: usize,
    input: &mut dyn Read,
    output: &mut dyn Write,
    progress: &Progress,
) -> Result<Unpacked, Failure> {
    let mut window = Window::new(input);
    window.fill(MAGIC_LEN)?;
    let format = match format.or_else(|| detect(window.bytes())) {
        Some(format) => format,
        None if window.bytes().is_empty() => return Err(Failure::Truncated),
        None => return Err(Failure::Format),
    };
    // Somebody who names a format has a file of that format.
    if !matches!(format, Format::Zlib | Format::Deflate) && !continues(format, window.bytes()) {
        return Err(if window.bytes().is_empty() { Failure::Truncated } else { Failure::Format });
    }
    let (max_src, max_dst) = client.limits().unwrap_or((1 << 20, 1 << 20));
    let mut unpacker = Unpacker {
        client,
        format,
        max_src,
        max_dst,
        flights: Flights::new(depth),
        output,
        progress,
        written: 0,
    };
    let garbage = unpacker.run(&mut window)?;
    unpacker.output.flush().map_err(Failure::Write)?;
    let totals = Totals { read: window.taken(), written: unpacker.written };
    Ok(Unpacked { totals, format, garbage })
}

struct Unpacker<'a> {
    client: &'a mut Client,
    format: Format,
    max_src: usize,
    max_dst: usize,
    /// About each: bytes of its source.
    flights: Flights<usize>,
    output: &'a mut dyn Write,
    progress: &'a Progress,
    written: u64,
}

impl Unpacker<'_> {
    /// Returns whether something follows that is no part of the file.
    fn run(&mut self, window: &mut Window<'_>) -> Result<bool, Failure> {
        let mut first = true;
        loop {
            window.fill(MAGIC_LEN)?;
            let raw = matches!(self.format, Format::Zlib | Format::Deflate);
            if !first && (raw || !continues(self.format, window.bytes())) {
                self.land()?;
                return Ok(!padding(window)?);
            }
            first = false;
            match self.measure(window)? {
                Extent::Known { len, room: 0 } if self.format != Format::Gzip && len > self.max_src => {
                    if !window.skip(len)? {
                        return Err(Failure::Truncated);
                    }
                }
                Extent::Known { len, room } => self.part(window, len, room)?,
                Extent::Needs(_) | Extent::Unknown => {
                    self.land()?;
                    self.stream(window)?;
                }
            }
            signal::check()?;
        }
    }

    /// What the next part is like, with all of it there unless it is a stream or a frame to be skipped.
    fn measure(&self, window: &mut Window<'_>) -> Result<Extent, Failure> {
        loop {
            match extent(self.format, window.bytes()) {
                Extent::Known { len, room } if len <= self.max_src && room <= self.max_dst => {
                    if window.fill(len)? {
                        return Ok(Extent::Known { len, room });
                    }
                    // It ends too early: a decoder says what is missing.
                    return Ok(Extent::Unknown);
                }
                Extent::Known { len, room: 0 } if self.format != Format::Gzip => {
                    return Ok(Extent::Known { len, room: 0 });
                }
                Extent::Needs(len) if len <= self.max_src && window.fill(len)? => {}
                _ => return Ok(Extent::Unknown),
            }
        }
    }

    fn part(&mut self, window: &mut Window<'_>, len: usize, room: usize) -> Result<(), Failure> {
        let Self { client, flights, output, progress, written, .. } = self;
        let request = Request::decompress(self.format, &window.bytes()[..len], room);
        flights.start(client, &request, len, |len, done| finish(*len, done, output, progress, written))?;
        window.take(len);
        Ok(())
    }

    /// Waits for all parts.
    fn land(&mut self) -> Result<(), Failure> {
        let Self { client, flights, output, progress, written, .. } = self;
        flights.finish(client, |len, done| finish(*len, done, output, progress, written))
    }

    /// One part of any length.
    fn stream(&mut self, window: &mut Window<'_>) -> Result<(), Failure> {
        let failed = |error| match error {
            StreamError::Status(status) => Failure::decompressing(status),
            StreamError::Unavailable => Failure::Unsupported,
            StreamError::Lost => Failure::Lost,
        };
        let stream = self.client.open_stream(Direction::Decompress, self.format, 0);
        let mut stream = stream.map_err(failed)?;
        let (max_src, room) = (self.max_src.min(STEP), self.max_dst.min(STEP));
        let mut buffer = Vec::new();
        loop {
            signal::check()?;
            window.fill(1)?;
            let len = window.bytes().len().min(max_src);
            let last = window.finished() && len == window.bytes().len();
            let flush = if last { Flush::Finish } else { Flush::No };
            buffer.clear();
            let step = self.client.step(&mut stream, &window.bytes()[..len], flush, room, &mut buffer);
            // What was decompressed before the data turned out to be bad is written, as gzip does.
            self.output.write_all(&buffer).map_err(Failure::Write)?;
            self.written += buffer.len() as u64;
            let step = step.map_err(failed)?;
            window.take(step.consumed);
            self.progress.advance(step.consumed as u64);
            if step.end {
                self.client.close_stream(stream);
                return Ok(());
            }
            if step.consumed == 0 && step.produced == 0 && last {
                return Err(Failure::Truncated);
            }
        }
    }
}

/// Writes the data of one part.
fn finish(
    len: usize,
    completion: &Completion,
    output: &mut dyn Write,
    progress: &Progress,
    written: &mut u64,
) -> Result<(), Failure> {
    if completion.status != Status::Ok {
        return Err(Failure::decompressing(completion.status));
    }
    if completion.consumed != len {
        return Err(Failure::Invalid);
    }
    output.write_all(&completion.output).map_err(Failure::Write)?;
    *written += completion.output.len() as u64;
    progress.advance(len as u64);
    Ok(())
}

/// Whether nothing but zeros follows, as on tapes.
fn padding(window: &mut Window<'_>) -> Result<bool, Failure> {
    while window.fill(1)? {
        if window.bytes().iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        window.take(window.bytes().len());
    }
    Ok(true)
}
