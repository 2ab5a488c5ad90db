//! The connection of a device, as `status` and the device lists show it.

use serde_json::{Value, json};
use vhost_user::SessionStatus;

/// `own`, an object that describes a device, with what its session is doing.
pub fn described(mut own: Value, session: &SessionStatus) -> Value {
    let connection = json!({
        "connected": session.connected,
        "connections": session.connections,
        "connections_unlogged": session.connections_unlogged,
        "waits": session.waits,
        "peer_pid": session.peer_pid,
        "features": format!("{:#x}", session.features),
        "device_status": session.device_status,
        "running_queues": running(session),
        "memory_bytes": session.memory_bytes,
        "logging": session.logging,
        "inflight": session.inflight,
    });
    if let (Some(own), Value::Object(connection)) = (own.as_object_mut(), connection) {
        own.extend(connection);
    }
    own
}

/// Rings that run now.
pub(crate) fn running(session: &SessionStatus) -> usize {
    session.rings.iter().filter(|ring| ring.started).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_shown_with_its_connection() {
        let session = SessionStatus { connected: true, features: 0x10, ..SessionStatus::default() };
        let shown = described(json!({"id": "a"}), &session);
        assert_eq!((&shown["id"], &shown["connected"]), (&json!("a"), &json!(true)));
        assert_eq!((&shown["features"], &shown["running_queues"]), (&json!("0x10"), &json!(0)));
    }
}
