//! JSON-RPC 2.0 (jsonrpc.org/specification) as values: requests, responses, batches.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Failure;
use crate::device::BadValue;

/// Error codes: the standard's, and ours in the range it leaves to servers.
pub mod code {
    /// The line is not JSON.
    pub const PARSE: i32 = -32700;
    /// The JSON is not a request.
    pub const INVALID_REQUEST: i32 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// The parameters are wrong.
    pub const INVALID_PARAMS: i32 = -32602;
    /// The daemon failed.
    pub const INTERNAL: i32 = -32603;
    /// The request was understood and cannot be done (no such disk, file missing, name taken).
    pub const REFUSED: i32 = -32000;
    /// Too many clients.
    pub const BUSY: i32 = -32001;
}

/// An error as it goes to the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`code`].
    pub code: i32,
    /// One sentence.
    pub message: String,
    /// Anything a program wants to know besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// An error with one of [`code`].
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The parameters are wrong.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_PARAMS, message)
    }

    /// There is no such method.
    pub fn method_not_found(method: &str) -> Self {
        Self::new(code::METHOD_NOT_FOUND, format!("There is no method '{method}'"))
    }

    /// Understood, and cannot be done.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(code::REFUSED, message)
    }

    /// The daemon failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, message)
    }
}

/// A failure of what a client asked for is a refusal, in the same words.
impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        Self::refused(failure.to_string())
    }
}

/// A value that makes no sense is a wrong parameter.
impl From<BadValue> for RpcError {
    fn from(value: BadValue) -> Self {
        Self::invalid_params(value.to_string())
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The method's name.
    pub method: String,
    /// An object, or null when there was none.
    pub params: Value,
    /// Absent in a notification, which gets no response.
    pub id: Option<Value>,
}

impl Request {
    /// The request as JSON.
    pub fn to_json(&self) -> Value {
        let mut object = json!({"jsonrpc": "2.0", "method": self.method});
        if !self.params.is_null() {
            object["params"] = self.params.clone();
        }
        if let Some(id) = &self.id {
            object["id"] = id.clone();
        }
        object
    }

    /// Checks every member; the error carries the id to answer to, null when it cannot be known.
    fn from_json(value: Value) -> Result<Self, (Value, RpcError)> {
        let Value::Object(mut object) = value else {
            return Err((Value::Null, invalid("A request is an object")));
        };
        let id = object.remove("id");
        if !matches!(id, None | Some(Value::Null | Value::Number(_) | Value::String(_))) {
            return Err((Value::Null, invalid("An id is a number, a string or null")));
        }
        let answer_to = id.clone().unwrap_or(Value::Null);
        if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err((answer_to, invalid("The member 'jsonrpc' must be \"2.0\"")));
        }
        let Some(Value::String(method)) = object.remove("method") else {
            return Err((answer_to, invalid("The member 'method' must be a string")));
        };
        let params = object.remove("params").unwrap_or(Value::Null);
        if !matches!(params, Value::Null | Value::Object(_)) {
            return Err((answer_to, RpcError::invalid_params("Parameters are given by name, in an object")));
        }
        Ok(Self { method, params, id })
    }
}

fn invalid(message: &str) -> RpcError {
    RpcError::new(code::INVALID_REQUEST, message)
}

/// The JSON of a response.
pub(super) fn response(id: Value, outcome: Result<Value, RpcError>) -> Value {
    match outcome {
        Ok(result) => json!({"jsonrpc": "2.0", "result": result, "id": id}),
        Err(error) => json!({"jsonrpc": "2.0", "error": error, "id": id}),
    }
}

/// Answers one line: a request, a notification (no answer) or a batch.
pub(super) fn answer(
    line: &[u8],
    call: &mut dyn FnMut(&str, Value) -> Result<Value, RpcError>,
) -> Option<Value> {
    match serde_json::from_slice(line) {
        Err(error) => {
            let error = RpcError::new(code::PARSE, format!("The message is not JSON: {error}"));
            Some(response(Value::Null, Err(error)))
        }
        Ok(Value::Array(batch)) if batch.is_empty() => {
            Some(response(Value::Null, Err(invalid("A batch holds at least one request"))))
        }
        Ok(Value::Array(batch)) => {
            let answers: Vec<_> = batch.into_iter().filter_map(|one| answer_one(one, call)).collect();
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        Ok(one) => answer_one(one, call),
    }
}

fn answer_one(value: Value, call: &mut dyn FnMut(&str, Value) -> Result<Value, RpcError>) -> Option<Value> {
    match Request::from_json(value) {
        Err((id, error)) => Some(response(id, Err(error))),
        Ok(request) => {
            let outcome = call(&request.method, request.params);
            request.id.map(|id| response(id, outcome))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str) -> Option<Value> {
        answer(line.as_bytes(), &mut |method, params| match method {
            "echo" => Ok(params),
            other => Err(RpcError::method_not_found(other)),
        })
    }

    fn error_code(answer: &Value) -> i64 {
        answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error in {answer}"))
    }

    #[test]
    fn a_request_is_answered_to_its_id() {
        for id in ["7", "\"x\"", "null"] {
            let line = format!(r#"{{"jsonrpc":"2.0","method":"echo","params":{{"a":1}},"id":{id}}}"#);
            let answer = ask(&line).unwrap();
            assert_eq!(answer["id"].to_string(), id);
            assert_eq!(answer["result"], json!({"a": 1}));
            assert_eq!(answer["jsonrpc"], "2.0");
        }
    }

    #[test]
    fn a_notification_gets_no_answer() {
        assert_eq!(ask(r#"{"jsonrpc":"2.0","method":"echo"}"#), None);
        assert_eq!(ask(r#"{"jsonrpc":"2.0","method":"none"}"#), None);
        assert_eq!(ask(r#"[{"jsonrpc":"2.0","method":"echo"}]"#), None);
    }

    #[test]
    fn what_is_no_request_gets_the_standards_code() {
        let cases = [
            ("{", -32700),
            ("", -32700),
            ("\u{ff}", -32700),
            ("1", -32600),
            ("[]", -32600),
            (r#"{"method":"echo","id":1}"#, -32600),
            (r#"{"jsonrpc":"1.0","method":"echo","id":1}"#, -32600),
            (r#"{"jsonrpc":"2.0","method":5,"id":1}"#, -32600),
            (r#"{"jsonrpc":"2.0","method":"echo","id":{}}"#, -32600),
            (r#"{"jsonrpc":"2.0","method":"echo","params":[1],"id":1}"#, -32602),
            (r#"{"jsonrpc":"2.0","method":"none","id":1}"#, -32601),
        ];
        for (line, code) in cases {
            assert_eq!(error_code(&ask(line).unwrap()), code, "{line}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        assert_eq!(error_code(&ask(&"[".repeat(500_000)).unwrap()), -32700);
    }

    #[test]
    fn a_batch_is_answered_in_order_without_its_notifications() {
        let answer = ask(
            r#"[{"jsonrpc":"2.0","method":"echo","id":1},{"jsonrpc":"2.0","method":"echo"},3,{"jsonrpc":"2.0","method":"no","id":2}]"#,
        )
        .unwrap();
        let answers = answer.as_array().unwrap();
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[0]["id"], 1);
        assert_eq!(error_code(&answers[1]), -32600);
        assert_eq!(answers[2]["id"], 2);
    }

    #[test]
    fn a_request_survives_its_own_json() {
        let request = Request { method: "m".into(), params: json!({"a": 1}), id: Some(json!(3)) };
        assert_eq!(Request::from_json(request.to_json()).unwrap(), request);
    }
}
