//! The worked example of the specification (docs/compress-device.md §1.8), byte for byte.

use crate::formats::pair;
use crate::frontend::{Answer, Request, Vmm};
use compress_protocol::{Header, Status};

const DOCUMENT: &str = include_str!("../../../docs/compress-device.md");

/// The bytes of an example: those in front of the comments of each line.
fn bytes(example: &str) -> Vec<u8> {
    let line = |line: &str| {
        let digits = line.split("   ").next().unwrap_or_default().to_owned();
        let digits: Vec<_> = digits.split_whitespace().map(str::to_owned).collect();
        digits
            .into_iter()
            .filter(|digits| digits != "..")
            .map(|digits| u8::from_str_radix(&digits, 16).unwrap())
    };
    example.lines().flat_map(line).collect()
}

/// The blocks of the worked example, in their order.
fn examples() -> Vec<Vec<u8>> {
    let (_, section) = DOCUMENT.split_once("### 1.8 ").expect("the section");
    let (section, _) = section.split_once("### 1.9 ").expect("the next one");
    section.split("```").skip(1).step_by(2).map(|block| bytes(block.trim())).collect()
}

fn send(vmm: &mut Vmm, readable: &[u8]) -> Answer {
    let header = Header::decode(readable[..64].try_into().unwrap());
    vmm.ask(Request::new(header, &readable[64..]))
}

#[test]
fn the_worked_example_is_what_the_device_does() {
    let (_server, mut vmm) = pair();
    let [request, answer, back, back_answer, bad, config] = <[Vec<u8>; 6]>::try_from(examples()).unwrap();
    assert_eq!((request.len(), answer.len(), back.len(), config.len()), (80, 23 + 32, 64, 64));
    let done = send(&mut vmm, &request);
    assert_eq!(done.result(), &answer[..23], "the result");
    assert_eq!(done.response.encode(), answer[23..], "the response");
    assert_eq!(done.used, 23);
    let member = &answer[..23];
    let done = send(&mut vmm, &[&back, member].concat());
    assert_eq!((done.result(), done.used), (&request[64..], 48));
    assert_eq!(done.response.encode(), back_answer[..]);

    let header = Header::decode(back[..].try_into().unwrap());
    let overflow = vmm.ask(Request::new(Header { dst_len: 15, ..header }, member));
    assert_eq!(overflow.status(), Status::Overflow);
    let cut = vmm.ask(Request::new(Header { src_len: 22, ..header }, member));
    assert_eq!(cut.status(), Status::Truncated);
    let mut wrong = member.to_vec();
    wrong[18] ^= 1;
    assert_eq!(vmm.ask(Request::new(header, &wrong)).status(), Status::BadData);
    let short = vmm.ask(Request::new(header, member).room(15));
    assert_eq!(short.response.encode(), bad[..]);
}

#[test]
fn the_example_configuration_is_one() {
    let config = examples().pop().unwrap();
    let config = compress_protocol::Config::decode(&config.try_into().unwrap());
    assert_eq!((config.check(), config.num_queues, config.max_segments), (Ok(()), 4, 1024));
}
