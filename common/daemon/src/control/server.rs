//! One client of the control socket: read a line, answer a line, within bounds.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use super::rpc::{self, RpcError, code};

/// Longest message, line end included.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Clients at the same time; one more is told so and disconnected.
pub const MAX_CLIENTS: usize = 32;
/// How long a client may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers requests of any client.
pub trait Dispatch: Send + Sync {
    /// Answers one request.
    fn dispatch(&self, method: &str, params: Value) -> Result<Value, RpcError>;

    /// Called after the answer has been written: what must not happen before the client knows (a shutdown).
    fn answered(&self, method: &str);
}

/// Serves one client until it closes, misbehaves or stops reading.
pub fn serve_client(stream: &UnixStream, dispatch: &dyn Dispatch) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        match read_line(&mut reader, &mut line)? {
            Line::End => return Ok(()),
            Line::TooLong => return refuse(stream, code::INVALID_REQUEST, "A message is at most 1 MiB long"),
            Line::Message => answer_line(stream, &line, dispatch)?,
        }
        // One huge message must not hold its memory for as long as the client stays.
        line.clear();
        line.shrink_to(4096);
    }
}

/// Tells a client why it is not served.
pub(crate) fn refuse(stream: &UnixStream, code: i32, message: &str) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    write_line(stream, &rpc::response(Value::Null, Err(RpcError::new(code, message))))
}

enum Line {
    Message,
    TooLong,
    End,
}

/// Reads one line into `line`; the last one may lack its line end.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    reader.take(MAX_MESSAGE as u64).read_until(b'\n', line)?;
    match line.last() {
        None => Ok(Line::End),
        Some(b'\n') => Ok(Line::Message),
        Some(_) if line.len() == MAX_MESSAGE => Ok(Line::TooLong),
        Some(_) => Ok(Line::Message),
    }
}

fn answer_line(stream: &UnixStream, line: &[u8], dispatch: &dyn Dispatch) -> io::Result<()> {
    if line.trim_ascii().is_empty() {
        return Ok(());
    }
    let mut called = Vec::new();
    let answer = rpc::answer(line, &mut |method, params| {
        let outcome = dispatch.dispatch(method, params);
        if outcome.is_ok() {
            called.push(method.to_owned());
        }
        outcome
    });
    let written = answer.map_or(Ok(()), |answer| write_line(stream, &answer));
    called.iter().for_each(|method| dispatch.answered(method));
    written
}

fn write_line(mut stream: &UnixStream, value: &Value) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    stream.write_all(&text)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;

    #[derive(Default)]
    struct Echo(Mutex<Vec<String>>);

    impl Dispatch for Echo {
        fn dispatch(&self, _method: &str, params: Value) -> Result<Value, RpcError> {
            Ok(params)
        }
        fn answered(&self, method: &str) {
            self.0.lock().unwrap().push(method.to_owned());
        }
    }

    /// Sends `input` as one client and returns every answer.
    fn talk(input: &[u8], echo: &Echo) -> Vec<Value> {
        let (mut client, server) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = serve_client(&server, echo);
            });
            // A server that refuses may close before all of it is written.
            let _ = client.write_all(input);
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let answers = BufReader::new(client).lines();
            answers.map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap()).collect()
        })
    }

    const PING: &str = "{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"id\":1}\n";

    #[test]
    fn several_messages_are_answered_in_order() {
        let echo = Echo::default();
        let input = format!("{PING}\n  \n{}", PING.replace("\"id\":1", "\"id\":2"));
        let ids: Vec<_> = talk(input.as_bytes(), &echo).iter().map(|a| a["id"].clone()).collect();
        assert_eq!(ids, [json!(1), json!(2)]);
        assert_eq!(*echo.0.lock().unwrap(), ["ping", "ping"]);
    }

    #[test]
    fn a_last_line_without_its_end_is_answered() {
        assert_eq!(talk(PING.trim_end().as_bytes(), &Echo::default()).len(), 1);
    }

    #[test]
    fn malformed_messages_leave_the_connection_usable() {
        let input = format!("{{\n\u{0}\u{1}\n{PING}");
        let answers = talk(input.as_bytes(), &Echo::default());
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[0]["error"]["code"], code::PARSE);
        assert_eq!(answers[2]["id"], 1);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_and_ends_the_connection() {
        let mut input = vec![b' '; MAX_MESSAGE];
        input.extend_from_slice(PING.as_bytes());
        let answers = talk(&input, &Echo::default());
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0]["error"]["code"], code::INVALID_REQUEST);
    }

    #[test]
    fn the_longest_allowed_message_is_answered() {
        let mut input = vec![b' '; MAX_MESSAGE - PING.len()];
        input.extend_from_slice(PING.as_bytes());
        assert_eq!(talk(&input, &Echo::default())[0]["id"], 1);
    }
}
