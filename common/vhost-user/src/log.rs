//! What the log says of the connections of one device: bounded, whatever front-ends do. What is left out is counted.

use std::cell::Cell;

use crate::backend::SessionError;
use crate::connection::ConnectionError;
use crate::rate_limited::RateLimited;

/// Connections a minute of which the log speaks. A machine that boots, migrates and reboots makes fewer.
const CONNECTIONS_PER_MINUTE: u32 = 10;
/// Refused messages of one connection that are logged as warnings.
const LOUD_REFUSALS: u64 = 16;

/// The lines of one device's connections. Those left out of it are there at debug level.
pub(crate) struct ConnectionLog {
    connections: RateLimited,
    waits: RateLimited,
    /// The connection of now is one of those that the log speaks of.
    speaks: Cell<bool>,
}

impl ConnectionLog {
    pub fn new() -> Self {
        let limit = || RateLimited::per_minute(CONNECTIONS_PER_MINUTE);
        Self { connections: limit(), waits: limit(), speaks: Cell::new(true) }
    }

    /// A connection begins. False if this and its further lines are left out.
    pub fn connected(&self, peer_pid: Option<i32>) -> bool {
        let permit = self.connections.permit();
        self.speaks.set(permit.is_some());
        match permit {
            // The number is there when it says something.
            Some(left_out) => {
                let left_out = (left_out > 0).then_some(left_out);
                tracing::info!(peer_pid, left_out, "front-end connected");
            }
            None => tracing::debug!(peer_pid, "front-end connected"),
        }
        permit.is_some()
    }

    /// The connection has come to its end.
    pub fn ended(&self, error: &SessionError) {
        let usual =
            matches!(error, SessionError::Connection(ConnectionError::Closed | ConnectionError::Stopped));
        match (self.speaks.get(), usual) {
            (true, true) => tracing::info!(reason = %error, "front-end disconnected"),
            (true, false) => tracing::warn!(reason = %error, "connection ended"),
            (false, _) => tracing::debug!(reason = %error, "connection ended"),
        }
    }

    /// Message number `nth` of those that this connection was refused.
    pub fn refused(&self, nth: u64, request: &str, reason: &dyn std::fmt::Display) {
        if self.speaks.get() && nth <= LOUD_REFUSALS {
            tracing::warn!(request, %reason, "message refused");
        } else {
            tracing::debug!(request, %reason, "message refused");
        }
    }

    /// Somebody else has connected.
    pub fn another_waits(&self, served_pid: Option<i32>) {
        if let Some(left_out) = self.waits.permit() {
            let left_out = (left_out > 0).then_some(left_out);
            tracing::warn!(
                served_pid,
                left_out,
                "another front-end has connected; it waits until the one that is served is gone"
            );
        }
    }
}
