//! Just enough HTTP/1.1 for a scraper: one GET a connection, within a deadline and bounds.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Clients at the same time.
pub const MAX_CLIENTS: usize = 8;
/// Time a client has from connecting to its last byte, however slowly it sends or reads.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Longest request head.
const MAX_HEAD: usize = 8 << 10;

/// A connection of either kind.
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix socket.
    Unix(UnixStream),
}

/// Answers one request and closes; `exposition` is only called for a good one.
pub fn serve_client(stream: Stream, exposition: impl FnOnce() -> String) -> io::Result<()> {
    serve_until(stream, exposition, Instant::now() + TIME_LIMIT)
}

fn serve_until(mut stream: Stream, exposition: impl FnOnce() -> String, deadline: Instant) -> io::Result<()> {
    stream.set_blocking()?;
    let head = read_head(&mut stream, deadline)?;
    let response = match head.as_deref().map(request) {
        None => plain("431 Request Header Fields Too Large", "The request is too long.\n"),
        Some(Request::Metrics { body }) => {
            let text = exposition();
            let head = response_head("200 OK", "text/plain; version=0.0.4; charset=utf-8", text.len());
            if body { head + &text } else { head }
        }
        Some(Request::OtherPath) => plain("404 Not Found", "Metrics are at /metrics.\n"),
        Some(Request::OtherMethod) => plain("405 Method Not Allowed", "Only GET and HEAD are answered.\n"),
        Some(Request::Garbage) => plain("400 Bad Request", "This is not HTTP.\n"),
    };
    stream.write_until(response.as_bytes(), deadline)?;
    stream.finish()
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Metrics { body: bool },
    OtherPath,
    OtherMethod,
    Garbage,
}

/// What the request line asks for; header fields do not matter.
fn request(head: &[u8]) -> Request {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(line) = str::from_utf8(line) else { return Request::Garbage };
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Request::Garbage;
    };
    if !version.starts_with("HTTP/1.") {
        return Request::Garbage;
    }
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET", "/metrics" | "/") => Request::Metrics { body: true },
        ("HEAD", "/metrics" | "/") => Request::Metrics { body: false },
        ("GET" | "HEAD", _) => Request::OtherPath,
        _ => Request::OtherMethod,
    }
}

fn plain(status: &str, body: &str) -> String {
    response_head(status, "text/plain; charset=utf-8", body.len()) + body
}

fn response_head(status: &str, kind: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

/// Reads up to the empty line; `None` when the head is too long.
fn read_head(stream: &mut Stream, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while head.len() < MAX_HEAD {
        let n = stream.read_until(&mut piece, deadline)?;
        head.extend_from_slice(&piece[..n]);
        let ended =
            head.windows(4).any(|four| four == b"\r\n\r\n") || head.windows(2).any(|two| two == b"\n\n");
        if ended || n == 0 {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

impl Stream {
    fn set_blocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(false),
            Self::Unix(stream) => stream.set_nonblocking(false),
        }
    }

    fn read_until(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let left = Some(left(deadline)?);
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(buffer)),
            Self::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(buffer)),
        }
    }

    /// Writes everything, piece by piece, so that a client that reads a byte a second does not renew its time.
    fn write_until(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = Some(left(deadline)?);
            let n = match self {
                Self::Tcp(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
                Self::Unix(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
            }?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

/// Time left, never zero (which would mean no limit).
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &[u8]) -> String {
        let (mut client, server) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve_client(Stream::Unix(server), || "metric 1\n".to_owned()));
            let _ = client.write_all(request);
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            String::from_utf8(answer).unwrap()
        })
    }

    #[test]
    fn a_scrape_gets_the_text_with_its_type_and_length() {
        let answer = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("Content-Type: text/plain; version=0.0.4") && head.contains("Content-Length: 9")
        );
        assert_eq!(body, "metric 1\n");
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let answer = ask(b"HEAD / HTTP/1.0\n\n");
        assert!(answer.contains("Content-Length: 9") && answer.ends_with("\r\n\r\n"));
    }

    #[test]
    fn anything_else_is_told_what_is_wrong() {
        let cases: [(&[u8], &str); 6] = [
            (b"GET /secret HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"\xff\xfe\x00\n\n", "400"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"", "400"),
            (&[b'a'; MAX_HEAD + 1], "431"),
        ];
        for (request, status) in cases {
            let answer = ask(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }

    #[test]
    fn a_client_that_sends_slowly_is_cut_off_at_the_deadline() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(200);
        let outcome = std::thread::scope(|scope| {
            let served = scope.spawn(move || serve_until(Stream::Unix(server), String::new, deadline));
            // One byte at a time would renew a plain read timeout for ever.
            while client.write_all(b"x").is_ok() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(20));
            }
            served.join().unwrap()
        });
        assert!(outcome.is_err());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_at_the_deadline() {
        let (client, server) = UnixStream::pair().unwrap();
        (&client).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let start = Instant::now();
        let huge = || "x".repeat(64 << 20);
        let outcome = serve_until(Stream::Unix(server), huge, start + Duration::from_millis(200));
        assert!(outcome.is_err());
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
