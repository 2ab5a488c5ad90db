//! Compression of a file: in requests that are complete by themselves, several in flight at a time.

use std::io::{Read, Write};

use guest_driver::compress::{
    Checksum, Client, Completion, Direction, Flush, Format, Request, Status, StreamError,
};

use crate::archive::gzip::{self, Origin};
use crate::failure::Failure;
use crate::flights::Flights;
use crate::progress::Progress;
use crate::signal;
use crate::window::Window;

/// How a file is compressed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// To this format.
    pub format: Format,
    /// 0 is the format's default.
    pub level: i32,
    /// Bytes a request.
    pub chunk: usize,
    /// Requests in flight.
    pub depth: usize,
    /// Every result is verified.
    pub verify: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// What the end of a request has to know.
struct Part {
    len: usize,
    origin: Origin,
}

/// Compresses `input` to `output`.
pub fn pack(
    client: &mut Client,
    settings: &Settings,
    origin: &Origin,
    input: &mut dyn Read,
    output: &mut dyn Write,
    progress: &Progress,
) -> Result<Totals, Failure> {
    let chunk = client.compress_limit().map_or(settings.chunk, |most| settings.chunk.min(most));
    let settings = &Settings { chunk, ..*settings };
    let mut window = Window::new(input);
    // A file of this format is one stream, whatever its length.
    let parts = settings.format != Format::Zlib || !window.fill(settings.chunk + 1)?;
    let written = if parts {
        Packer { client, settings, progress }.parts(&mut window, origin, output)?
    } else {
        Packer { client, settings, progress }.stream(&mut window, output)?
    };
    output.flush().map_err(Failure::Write)?;
    Ok(Totals { read: window.taken(), written })
}

struct Packer<'a> {
    client: &'a mut Client,
    settings: &'a Settings,
    progress: &'a Progress,
}

impl Packer<'_> {
    fn parts(self, window: &mut Window<'_>, origin: &Origin, output: &mut dyn Write) -> Result<u64, Failure> {
        let Self { client, settings, progress } = self;
        let mut flights = Flights::new(settings.depth);
        let mut written = 0;
        let mut write = |part: &Part, completion: &Completion| {
            written += finish(settings, part, completion, output)?;
            progress.advance(part.len as u64);
            signal::check()
        };
        // Only the first member has the name; all have the time.
        let mut name = origin.name.clone();
        let mut first = true;
        while window.fill(settings.chunk)? || !window.bytes().is_empty() || first {
            first = false;
            let len = window.bytes().len().min(settings.chunk);
            let part = Part { len, origin: Origin { name: name.take(), mtime: origin.mtime } };
            let request = request(settings, &window.bytes()[..len]);
            flights.start(client, &request, part, &mut write)?;
            window.take(len);
        }
        flights.finish(client, &mut write)?;
        Ok(written)
    }

    fn stream(self, window: &mut Window<'_>, output: &mut dyn Write) -> Result<u64, Failure> {
        let Self { client, settings, progress } = self;
        let failed = |error| match error {
            StreamError::Status(status) => Failure::Engine("compressed", status.name()),
            StreamError::Unavailable => Failure::Engine("compressed", Status::NotSupported.name()),
            StreamError::Lost => Failure::Lost,
        };
        let stream = client.open_stream(Direction::Compress, settings.format, settings.level);
        let mut stream = stream.map_err(failed)?;
        let mut buffer = Vec::new();
        let mut written = 0;
        loop {
            signal::check()?;
            let more = window.fill(settings.chunk)? || !window.finished();
            let flush = if more { Flush::No } else { Flush::Finish };
            let len = window.bytes().len().min(settings.chunk);
            // Everything that is there goes with the request that ends the stream.
            let flush = if len < window.bytes().len() { Flush::No } else { flush };
            buffer.clear();
            let source = &window.bytes()[..len];
            let step =
                client.step(&mut stream, source, flush, settings.chunk, &mut buffer).map_err(failed)?;
            output.write_all(&buffer).map_err(Failure::Write)?;
            written += buffer.len() as u64;
            window.take(step.consumed);
            progress.advance(step.consumed as u64);
            if step.end {
                client.close_stream(stream);
                return Ok(written);
            }
        }
    }
}

fn request<'a>(settings: &Settings, source: &'a [u8]) -> Request<'a> {
    let request = match settings.format {
        // What is around the data is ours, so that the member can say how long it is.
        Format::Gzip => Request::compress(Format::Deflate, source).checksum(Checksum::Crc32),
        format => Request::compress(format, source),
    };
    let request = request.level(settings.level);
    if settings.verify { request.verify() } else { request }
}

/// Writes one part; returns how many bytes that are.
fn finish(
    settings: &Settings,
    part: &Part,
    completion: &Completion,
    output: &mut dyn Write,
) -> Result<u64, Failure> {
    if completion.status != Status::Ok {
        return Err(Failure::Engine("compressed", completion.status.name()));
    }
    let data = &completion.output;
    let mut write = |bytes: &[u8]| output.write_all(bytes).map_err(Failure::Write);
    if settings.format != Format::Gzip {
        write(data)?;
        return Ok(data.len() as u64);
    }
    let header = gzip::header(&part.origin, settings.level, data.len());
    let trailer = gzip::trailer(completion.checksum as u32, part.len);
    write(&header)?;
    write(data)?;
    write(&trailer)?;
    Ok((header.len() + data.len() + trailer.len()) as u64)
}
