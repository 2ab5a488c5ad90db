//! A client of the control socket: what `vhostctl` and tests call a daemon with.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Request, RpcError};

/// A connection to one daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    next_id: u64,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon is gone or does not answer.
    #[error("The daemon does not answer: {0}")]
    Io(#[from] io::Error),
    /// The peer does not speak JSON-RPC 2.0.
    #[error("The answer is not JSON-RPC 2.0: {0}")]
    Protocol(String),
    /// The daemon refused.
    #[error(transparent)]
    Rpc(RpcError),
}

impl Client {
    /// Connects; each call waits at most `timeout` for its answer.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream), next_id: 1 })
    }

    /// Calls one method; `params` is an object or null.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        let id = json!(self.next_id);
        self.next_id += 1;
        let request = Request { method: method.to_owned(), params, id: Some(id.clone()) };
        self.send(&request.to_json())?;
        let mut answer = self.receive()?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            let error = serde_json::from_value(error.clone());
            return Err(error.map_or_else(|error| CallError::Protocol(error.to_string()), CallError::Rpc));
        }
        if answer.get("id") != Some(&id) {
            return Err(CallError::Protocol("it is for another request".into()));
        }
        answer
            .get_mut("result")
            .map(Value::take)
            .ok_or_else(|| CallError::Protocol("it has no result".into()))
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        let mut text = serde_json::to_vec(message)?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text)
    }

    fn receive(&mut self) -> Result<Value, CallError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        serde_json::from_str(&line).map_err(|error| CallError::Protocol(error.to_string()))
    }
}
