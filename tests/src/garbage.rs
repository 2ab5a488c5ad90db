//! What no frontend should send.

use vhost_user::message::{Request, flags};

/// A message as bytes: request, flags, announced size, payload.
pub fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12 + payload.len());
    for word in [request, flags, size] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// Words as bytes.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Byte streams no frontend should send.
pub fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let code = u32::from;
    let whole = |request: Request, payload: &[u8]| message(code(request), 1, payload.len() as u32, payload);
    let huge_region: Vec<u8> =
        [1u64, 0, u64::MAX, u64::MAX, u64::MAX].iter().flat_map(|word| word.to_ne_bytes()).collect();
    vec![
        ("nothing at all", vec![]),
        ("half a header", vec![1, 0, 0]),
        ("a header without its payload", message(code(Request::SetFeatures), 1, 8, &[])),
        ("request 0", message(0, 1, 0, &[])),
        ("an unknown request", message(9999, 1 | flags::NEED_REPLY, 0, &[])),
        ("version 0", message(code(Request::GetFeatures), 0, 0, &[])),
        ("version 3", message(code(Request::GetFeatures), 3, 0, &[])),
        ("a reply nobody asked for", message(code(Request::GetFeatures), 1 | flags::REPLY, 8, &[0; 8])),
        ("a payload of 4 GiB", message(code(Request::SetFeatures), 1, u32::MAX, &[0; 64])),
        ("a payload that is too short", whole(Request::SetFeatures, &[0; 4])),
        ("a payload that is too long", whole(Request::SetFeatures, &[0; 64])),
        ("a memory table without regions", whole(Request::SetMemTable, &words(&[0, 0]))),
        ("a memory table of 4 billion regions", whole(Request::SetMemTable, &words(&[u32::MAX, 0]))),
        (
            "a memory table without descriptors",
            whole(Request::SetMemTable, &[&words(&[1, 0])[..], &[0; 32]].concat()),
        ),
        ("a region beyond the address space", whole(Request::AddMemReg, &huge_region)),
        ("the removal of a region that is not there", whole(Request::RemMemReg, &[0; 40])),
        ("ring 255", whole(Request::SetVringNum, &words(&[255, 64]))),
        ("ring 4 billion", whole(Request::GetVringBase, &words(&[u32::MAX, 0]))),
        ("a ring of no entries", whole(Request::SetVringNum, &words(&[0, 0]))),
        ("a ring of 63 entries", whole(Request::SetVringNum, &words(&[0, 63]))),
        ("a ring of 4 billion entries", whole(Request::SetVringNum, &words(&[0, u32::MAX]))),
        ("ring addresses without memory", whole(Request::SetVringAddr, &[0xff; 40])),
        ("a start without anything", whole(Request::SetVringKick, &[0, 1, 0, 0, 0, 0, 0, 0])),
        ("a kick without its descriptor", whole(Request::SetVringKick, &[0; 8])),
        ("configuration far out", whole(Request::GetConfig, &words(&[u32::MAX, 256, 0]))),
        ("configuration of 4 GiB", whole(Request::GetConfig, &words(&[0, u32::MAX, 0]))),
        ("a log without a descriptor", whole(Request::SetLogBase, &[0xff; 16])),
        ("an inflight region without a descriptor", whole(Request::SetInflightFd, &[0xff; 24])),
        ("an inflight region of no queues", whole(Request::GetInflightFd, &[0; 24])),
        ("features nobody offered", whole(Request::SetFeatures, &[0xff; 8])),
        ("protocol features nobody offered", whole(Request::SetProtocolFeatures, &[0xff; 8])),
        ("state nobody offered", whole(Request::SetDeviceStateFd, &[0xff; 8])),
    ]
}
