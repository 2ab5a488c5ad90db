//! What goes wrong, in gzip's words.

use std::io;

use guest_driver::compress::Status;

/// Why a file was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The source.
    #[error("{}", plain(.0))]
    Read(#[source] io::Error),
    /// The result; where it goes is named already.
    #[error("{}", plain(.0))]
    Write(#[source] io::Error),
    /// It begins like nothing that is known.
    #[error("not in gzip, zlib, zstd or lz4 format")]
    Format,
    /// It ends too early.
    #[error("unexpected end of file")]
    Truncated,
    /// A decoder cannot go on, or a checksum is wrong.
    #[error("invalid compressed data--format or checksum violated")]
    Invalid,
    /// It is longer than it says.
    #[error("invalid compressed data--length error")]
    Length,
    /// Nobody here does that.
    #[error("compressed in a way that is not supported")]
    Unsupported,
    /// Neither the device nor software got it done.
    #[error("cannot be {0}: {1}")]
    Engine(&'static str, &'static str),
    /// The device went away in the middle of a stream.
    #[error("the device is gone, and what was read of the input cannot be read again")]
    Lost,
    /// Somebody pressed Control-C.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// Why data were not decompressed.
    pub fn decompressing(status: Status) -> Self {
        match status {
            Status::BadData => Self::Invalid,
            Status::Truncated => Self::Truncated,
            Status::Overflow => Self::Length,
            Status::NotSupported => Self::Unsupported,
            other => Self::Engine("decompressed", other.name()),
        }
    }

    /// Whether the reader of the result has gone away, which is its right.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// An error as `strerror` words it, without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// What is said of a file, and what it means for the exit code.
#[derive(Debug)]
pub enum Trouble {
    /// Exit code 1.
    Error(String),
    /// Exit code 2; not said with `--quiet`.
    Warning(String),
    /// Ends everything.
    Interrupted,
    /// Ends everything in silence.
    BrokenPipe,
}

impl Trouble {
    /// A failure with the name of its file.
    pub fn of(name: &str, failure: &Failure) -> Self {
        match failure {
            Failure::Interrupted => Self::Interrupted,
            failure if failure.is_broken_pipe() => Self::BrokenPipe,
            failure => Self::Error(format!("{name}: {failure}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_worded_as_other_programs_word_them() {
        assert_eq!(plain(&io::Error::from_raw_os_error(28)), "No space left on device");
        assert_eq!(plain(&io::Error::other("no number")), "no number");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        let failure = Failure::Write(io::ErrorKind::BrokenPipe.into());
        assert!(matches!(Trouble::of("x", &failure), Trouble::BrokenPipe));
        assert!(
            matches!(Trouble::of("x", &Failure::Truncated), Trouble::Error(text) if text == "x: unexpected end of file")
        );
    }
}
