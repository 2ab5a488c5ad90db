//! The thread that writes a mirror file.

use super::super::ports::PortId;
use super::queue::{Header, Queue};
use super::{CaptureOptions, pcapng};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// After it was woken, the writer lets frames gather for this long: so workers wake it 5000 times a second at most.
const GATHER: Duration = Duration::from_micros(200);

/// Why a mirror ended before it was told to.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the file has reached its limit of {0} bytes")]
    Limit(u64),
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub(super) struct Writer {
    options: CaptureOptions,
    queue: Arc<Queue>,
    file: BufWriter<File>,
    /// Bytes of the file, and frames.
    size: u64,
    frames: u64,
    interfaces: HashMap<PortId, u32>,
    /// Of the frames lost, those the file tells about.
    reported: u64,
    frame: Vec<u8>,
    block: Vec<u8>,
}

fn create(path: &PathBuf) -> io::Result<BufWriter<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    Ok(BufWriter::with_capacity(256 << 10, file))
}

impl Writer {
    pub(super) fn create(options: CaptureOptions, queue: Arc<Queue>) -> io::Result<Self> {
        let mut writer = Self {
            file: create(&options.path)?,
            options,
            queue,
            size: 0,
            frames: 0,
            interfaces: HashMap::new(),
            reported: 0,
            frame: Vec::new(),
            block: Vec::new(),
        };
        writer.begin()?;
        Ok(writer)
    }

    fn begin(&mut self) -> io::Result<()> {
        self.block.clear();
        pcapng::section(&mut self.block);
        self.interfaces.clear();
        (self.size, self.frames) = (0, 0);
        self.append()
    }

    fn append(&mut self) -> io::Result<()> {
        self.size += self.block.len() as u64;
        self.file.write_all(&self.block)
    }

    /// Until nobody records any more, or the file cannot be written.
    pub(super) fn run(mut self) {
        if let Err(end) = self.write_all() {
            let path = self.options.path.display();
            tracing::warn!("the mirror to {path} has stopped: {end}");
        }
        self.queue.finish();
    }

    fn write_all(&mut self) -> Result<(), End> {
        loop {
            while let Some(header) = self.queue.pop(&mut self.frame) {
                self.write(&header)?;
            }
            if !self.queue.is_empty() {
                // A worker is still filling its chunks.
                thread::yield_now();
                continue;
            }
            self.file.flush()?;
            if self.queue.is_closed() && self.queue.is_empty() {
                return Ok(());
            }
            if self.queue.may_sleep() {
                thread::park();
                thread::sleep(GATHER);
            }
        }
    }

    fn write(&mut self, header: &Header) -> Result<(), End> {
        let lost = self.queue.dropped();
        self.encode(header, lost - self.reported);
        if let Some(limit) = self.options.max_bytes
            && self.size + self.block.len() as u64 > limit
            && self.frames > 0
        {
            self.rotate(limit)?;
            self.encode(header, lost - self.reported);
        }
        self.append()?;
        self.reported = lost;
        self.frames += 1;
        self.queue.count_written();
        Ok(())
    }

    /// The block of the frame, after that of its interface when this is its first frame.
    fn encode(&mut self, header: &Header, lost: u64) {
        self.block.clear();
        let port = PortId(header.port);
        let next = self.interfaces.len() as u32;
        let number = *self.interfaces.entry(port).or_insert(next);
        if number == next {
            pcapng::interface(&mut self.block, &self.queue.name(port), self.options.snaplen);
        }
        pcapng::packet(&mut self.block, number, header, &self.frame, lost);
    }

    /// `PATH` becomes `PATH.1`, that becomes `PATH.2`, and so on; the last one goes.
    fn rotate(&mut self, limit: u64) -> Result<(), End> {
        self.file.flush()?;
        if self.options.files <= 1 {
            return Err(End::Limit(limit));
        }
        for number in (1..self.options.files).rev() {
            match fs::rename(self.numbered(number - 1), self.numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        self.file = create(&self.options.path)?;
        Ok(self.begin()?)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.options.path.clone(),
            _ => {
                let mut name = OsString::from(&self.options.path);
                name.push(format!(".{number}"));
                name.into()
            }
        }
    }
}
