//! Streams: data that are longer than a request, with history from one request to the next.
//!
//! The history is in the device, so software cannot go on where a device stops: whoever uses streams starts again, and gets
//! a stream in software if the device is gone by then.

use std::time::Instant;

use compress_offload::engine::{Outcome, Output};
use compress_offload::stream;
use compress_protocol::{
    Checksum, Direction, Flush, Format, Header, Opcode, Response, Status, flag, response_flag,
};

use super::client::Client;
use super::request::By;
use super::software::{params, status};
use crate::fallback::Reason;

/// Attempts while the device is busy, and the time between them.
const ATTEMPTS: u32 = 200;
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Why a stream does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The format has no streams, or the level does not exist.
    #[error("There are no such streams")]
    Unavailable,
    /// The device is gone, has lost the stream or does not answer. The same may be done in software, from the start.
    #[error("The device does not go on with the stream")]
    Lost,
    /// The data are bad, or a limit is reached.
    #[error("The stream has ended: {}", .0.name())]
    Status(Status),
}

/// A stream.
#[derive(Debug)]
pub struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    Device { id: u64, opcode: Opcode },
    Software(stream::Stream),
}

impl Stream {
    /// Where its history is.
    pub fn by(&self) -> By {
        match self.0 {
            Kind::Device { .. } => By::Device,
            Kind::Software(_) => By::Software,
        }
    }
}

/// What a part of a stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of source that were used; the others are to be given again.
    pub consumed: usize,
    /// Bytes that were appended to the output.
    pub produced: usize,
    /// The stream, or this member of it, is complete: what follows begins another one.
    pub end: bool,
}

impl Client {
    /// Opens a stream: on the device if it has such streams and room for one more, else in software.
    ///
    /// # Errors
    /// When there is no such thing.
    pub fn open_stream(
        &mut self,
        direction: Direction,
        format: Format,
        level: i32,
    ) -> Result<Stream, StreamError> {
        if self.has_streams(format) && !self.streams_paused() {
            match self.open_on_device(direction, format, level) {
                Ok(stream) => return Ok(stream),
                Err(error) => tracing::debug!(%error, "No stream on the device"),
            }
        }
        let opened = stream::Stream::open(direction, &params(format, level, Checksum::None));
        opened.map(|stream| Stream(Kind::Software(stream))).map_err(|_| StreamError::Unavailable)
    }

    fn open_on_device(
        &mut self,
        direction: Direction,
        format: Format,
        level: i32,
    ) -> Result<Stream, StreamError> {
        let (header, opcode) = match direction {
            Direction::Compress => (Header::open_compressor(format, level), Opcode::Compress),
            Direction::Decompress => (Header::open_decompressor(format), Opcode::Decompress),
        };
        let response = self.exchange(&header, &[], &mut Vec::new())?;
        match response.status() {
            Some(Status::Ok) => Ok(Stream(Kind::Device { id: response.stream_id(), opcode })),
            status => Err(StreamError::Status(status.unwrap_or(Status::Error))),
        }
    }

    /// Gives a stream more of its source, or with [`Flush::Finish`] the last of it; what it comes to, at most `room` bytes,
    /// is appended to `output`. A device's stream takes no more at a time than [`Client::limits`] say.
    ///
    /// # Errors
    /// When the data are bad or the device is gone; the stream is of no use then.
    pub fn step(
        &mut self,
        stream: &mut Stream,
        source: &[u8],
        flush: Flush,
        room: usize,
        output: &mut Vec<u8>,
    ) -> Result<Step, StreamError> {
        match &mut stream.0 {
            Kind::Device { id, opcode } => self.step_on_device((*id, *opcode), source, flush, room, output),
            Kind::Software(stream) => step_in_software(stream, source, flush, room, output),
        }
    }

    fn step_on_device(
        &mut self,
        (id, opcode): (u64, Opcode),
        source: &[u8],
        flush: Flush,
        room: usize,
        output: &mut Vec<u8>,
    ) -> Result<Step, StreamError> {
        let (max_src, max_dst) = self.limits().ok_or(StreamError::Lost)?;
        let (source, rest) = source.split_at(source.len().min(max_src));
        let flags = match flush {
            // The last of the source is not among it yet.
            _ if !rest.is_empty() => 0,
            Flush::No => 0,
            Flush::Flush => flag::FLUSH,
            Flush::Finish => flag::FINISH,
        };
        let room = room.min(max_dst) as u32;
        let header = Header::stream(opcode, id, flags, source.len() as u32, room);
        let before = output.len();
        let response = match self.exchange(&header, source, output) {
            Ok(response) => response,
            Err(error) => {
                let gone = self.device().is_none_or(|device| device.check_now());
                return Err(self.lose_stream(error, if gone { Reason::Lost } else { Reason::Slow }));
            }
        };
        match response.status() {
            Some(Status::Ok) => Ok(Step {
                consumed: response.consumed as usize,
                produced: output.len() - before,
                end: response.flags & response_flag::STREAM_END != 0,
            }),
            // The data are not to blame: another process serves the device by now, or its engine failed.
            Some(Status::BadStream) => Err(self.lose_stream(StreamError::Lost, Reason::Lost)),
            None | Some(Status::Error) => Err(self.lose_stream(StreamError::Lost, Reason::Failed)),
            Some(Status::Busy) => Err(self.lose_stream(StreamError::Lost, Reason::Busy)),
            Some(status) => Err(StreamError::Status(status)),
        }
    }

    /// The history is gone. Whoever begins again has a stream in software, for a while.
    fn lose_stream(&mut self, error: StreamError, reason: Reason) -> StreamError {
        self.pause_streams(reason);
        error
    }

    /// Closes a stream, so that another one has its place.
    pub fn close_stream(&mut self, stream: Stream) {
        let Kind::Device { id, .. } = stream.0 else { return };
        if self.exchange(&Header::close(id), &[], &mut Vec::new()).is_err() {
            tracing::debug!("A stream was closed with its device");
        }
    }

    /// A request of a stream and its response; while the device is busy, again, and BUSY if it stays so.
    fn exchange(
        &mut self,
        header: &Header,
        source: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Response, StreamError> {
        let mut attempts = 0;
        loop {
            // What else is in flight comes first: its results are kept.
            while self.in_flight() > 0 {
                self.look();
            }
            let due = Instant::now() + self.patience();
            let device = self.device().ok_or(StreamError::Lost)?;
            let response = device.exchange(header, source, output, due).ok_or(StreamError::Lost)?;
            attempts += 1;
            if response.status() != Some(Status::Busy) || attempts == ATTEMPTS {
                return Ok(response);
            }
            std::thread::sleep(BUSY_PAUSE);
        }
    }
}

fn step_in_software(
    stream: &mut stream::Stream,
    source: &[u8],
    flush: Flush,
    room: usize,
    output: &mut Vec<u8>,
) -> Result<Step, StreamError> {
    let before = output.len();
    output.resize(before + room, 0);
    let answer = stream.run(source, Output::from(&mut output[before..]), flush, Checksum::None);
    match answer.outcome {
        Outcome::Done { consumed, produced } => {
            output.truncate(before + produced);
            Ok(Step { consumed, produced, end: answer.stream_end })
        }
        outcome => {
            output.truncate(before);
            Err(StreamError::Status(status(outcome)))
        }
    }
}
