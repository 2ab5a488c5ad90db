//! What the keeper knows about each message.

use vhost_user::message::{Request, protocol};

/// Protocol features that the keeper can pass on; others would bring state that it does not record.
pub(crate) const PASSED: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::NET_MTU
    | protocol::BACKEND_REQ
    | protocol::CRYPTO_SESSION
    | protocol::CONFIG
    | protocol::BACKEND_SEND_FD
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS
    | protocol::DEVICE_STATE;

/// Protocol features that the keeper uses itself, whatever the frontend negotiates: every message is acknowledged, so that
/// it is known what the worker has taken, and requests in flight are tracked.
pub(crate) const OWN: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::INFLIGHT_SHMFD | protocol::CONFIGURE_MEM_SLOTS;

/// Whether the message has a reply of its own, other than an acknowledgement.
pub(crate) fn has_reply(request: Option<Request>) -> bool {
    use Request::*;
    matches!(
        request,
        Some(
            GetFeatures
                | GetProtocolFeatures
                | GetVringBase
                | GetQueueNum
                | SetLogBase
                | GetConfig
                | CreateCryptoSession
                | PostcopyAdvise
                | PostcopyEnd
                | GetInflightFd
                | GetMaxMemSlots
                | GetStatus
                | GetSharedObject
                | SetDeviceStateFd
                | CheckDeviceState
                | GetShmemConfig
        )
    )
}

/// Whether both sides must agree on the outcome: when the worker refuses the message and the frontend did not ask to hear of
/// it, the connection ends. (The worker itself was asked for an acknowledgement, and goes on.)
pub(crate) fn must_agree(request: Option<Request>) -> bool {
    use Request::*;
    matches!(
        request,
        Some(SetFeatures | SetProtocolFeatures | SetMemTable | AddMemReg | RemMemReg | SetInflightFd)
    )
}

/// Whether message and reply have keys in them: no copy of either outlasts it.
pub(crate) fn is_secret(request: Option<Request>) -> bool {
    request == Some(Request::CreateCryptoSession)
}

/// A message as its name, for people.
pub(crate) fn name(request: Option<Request>) -> &'static str {
    request.map_or("unknown message", Request::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_whose_outcome_must_be_agreed_on_has_only_an_acknowledgement() {
        for request in Request::ALL {
            assert!(!(has_reply(Some(*request)) && must_agree(Some(*request))), "{request}");
        }
        assert!(!has_reply(None) && !must_agree(None));
    }

    #[test]
    fn what_the_keeper_uses_it_can_pass_on() {
        assert_eq!(OWN & !PASSED, 0);
        let unknown = protocol::PAGEFAULT | protocol::HOST_NOTIFIER | protocol::INBAND_NOTIFICATIONS;
        assert_eq!(PASSED & unknown, 0);
    }
}
