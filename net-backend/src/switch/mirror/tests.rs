use super::queue::{CHUNKS, Header};
use super::*;
use crate::frame::{Body, NetHeader};
use memory::{GuestAddr, MemoryTable, MemoryView, OwnMemory};
use std::fs;
use std::path::Path;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Recorded {
    interface: String,
    len: usize,
    bytes: Vec<u8>,
    flags: u32,
    lost: u64,
    time_ns: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    loop {
        let (code, len) = (word(bytes, 0) as u16, (word(bytes, 0) >> 16) as usize);
        if code == 0 {
            assert_eq!(bytes.len(), 4, "nothing behind the end of the options");
            return options;
        }
        options.push((code, bytes[4..4 + len].to_vec()));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
}

/// Reads a file as any reader of pcapng would; panics when it is not one.
fn read(path: &Path) -> Vec<Recorded> {
    let file = fs::read(path).unwrap();
    let mut left = file.as_slice();
    let (mut interfaces, mut frames) = (Vec::new(), Vec::new());
    while !left.is_empty() {
        let (kind, len) = (word(left, 0), word(left, 4) as usize);
        assert_eq!(word(left, len - 4) as usize, len, "both lengths of a block agree");
        let (block, rest) = left.split_at(len);
        let body = &block[8..len - 4];
        match kind {
            0x0a0d_0d0a => assert_eq!((word(body, 0), word(body, 4)), (0x1a2b_3c4d, 1)),
            1 => {
                let options = options(&body[8..]);
                assert_eq!((word(body, 0), &options[1]), (1, &(9, vec![9])), "Ethernet, nanoseconds");
                interfaces.push(String::from_utf8(options[0].1.clone()).unwrap());
            }
            6 => {
                let captured = word(body, 12) as usize;
                let options = options(&body[20 + captured.next_multiple_of(4)..]);
                let lost = options.iter().find(|(code, _)| *code == 4);
                frames.push(Recorded {
                    interface: interfaces[word(body, 0) as usize].clone(),
                    len: word(body, 16) as usize,
                    bytes: body[20..20 + captured].to_vec(),
                    flags: word(&options[0].1, 0),
                    lost: lost.map_or(0, |(_, n)| u64::from_ne_bytes(n.as_slice().try_into().unwrap())),
                    time_ns: u64::from(word(body, 4)) << 32 | u64::from(word(body, 8)),
                });
            }
            _ => panic!("a block of type {kind:#x}"),
        }
        left = rest;
    }
    frames
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ i as u8 ^ seed).collect()
}

fn record(capture: &Capture, port: u16, direction: Direction, head: &[u8]) {
    let view = MemoryView::new(MemoryTable::empty());
    let packet = Packet { header: NetHeader::PLAIN, head, body: Body::empty(&view) };
    capture.record(PortId(port), direction, &packet);
}

#[test]
fn frames_are_in_the_file_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let options = CaptureOptions::to(directory.path().join("all.pcapng"));
    let capture = Capture::open(&options).unwrap();
    capture.name_ports(&BTreeMap::from([(PortId(3), "web".to_owned())]));
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    record(&capture, 3, Direction::Out, &bytes(60, 1));
    record(&capture, 9, Direction::In, &bytes(61, 2));
    record(&capture, 3, Direction::In, &bytes(62, 3));
    assert!(capture.finish(PATIENCE));
    let frames = read(&options.path);
    let seen: Vec<_> = frames.iter().map(|f| (f.interface.as_str(), f.flags, f.bytes.clone())).collect();
    assert_eq!(seen, [("web", 2, bytes(60, 1)), ("port9", 1, bytes(61, 2)), ("web", 1, bytes(62, 3))]);
    assert!(frames.iter().all(|f| f.lost == 0 && f.time_ns >= before && f.len == f.bytes.len()));
    assert_eq!(capture.counters(), CaptureCounters { written: 3, dropped: 0, stopped: true });
}

#[test]
fn a_payload_in_memory_is_copied_behind_the_head_up_to_the_snap_length() {
    let directory = tempfile::tempdir().unwrap();
    let (head, payload) = (bytes(128, 1), bytes(60_000, 2));
    let memory = OwnMemory::new(1 << 20, GuestAddr(0)).unwrap();
    let view = MemoryView::new(memory.table().clone());
    let ranges: Vec<_> = payload
        .chunks(7001)
        .map(|piece| {
            let slice = view.slice(memory.alloc(piece.len(), 64).unwrap(), piece.len()).unwrap();
            slice.write(0, piece);
            slice.range()
        })
        .collect();
    let whole = [head.clone(), payload].concat();
    for snaplen in [14, 100, 128, 129, 2048, 2049, 40_000, 100_000] {
        let path = directory.path().join(snaplen.to_string());
        let capture = Capture::open(&CaptureOptions { snaplen, ..CaptureOptions::to(&path) }).unwrap();
        let body = Body::new(&view, &ranges, 0, 60_000);
        capture.record(PortId(1), Direction::In, &Packet { header: NetHeader::PLAIN, head: &head, body });
        assert!(capture.finish(PATIENCE));
        let frames = read(&path);
        assert_eq!((frames.len(), frames[0].len), (1, whole.len()));
        assert_eq!(frames[0].bytes, whole[..whole.len().min(snaplen as usize)], "{snaplen}");
    }
}

fn header(captured: usize) -> Header {
    Header { time_ns: 1, len: captured as u32, captured: captured as u32, port: 0, direction: Direction::In }
}

#[test]
fn a_queue_that_is_full_drops_and_counts_and_takes_frames_again() {
    let queue = Queue::default();
    let frame = bytes(2049, 0);
    let taken = (0..CHUNKS).filter(|_| queue.push(header(2049), &frame, |_, _| ())).count();
    assert_eq!((taken, queue.dropped()), (CHUNKS / 2, (CHUNKS / 2) as u64));
    let mut out = Vec::new();
    assert_eq!(queue.pop(&mut out), Some(header(2049)));
    assert_eq!(out, frame);
    assert!(queue.push(header(2049), &frame, |_, _| ()));
    assert!(!queue.push(header(60), &frame, |_, _| ()));
}

#[test]
fn a_frame_larger_than_the_queue_is_dropped() {
    let queue = Queue::default();
    assert!(!queue.push(header(64 << 20), &[0; 60], |_, out| out.fill(1)));
    assert_eq!(queue.dropped(), 1);
}

#[test]
fn lost_frames_are_noted_at_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lost");
    let capture = Capture::open(&CaptureOptions::to(&path)).unwrap();
    let queue = &capture.0.queue;
    (0..3).for_each(|_| assert!(!queue.push(header(1 << 30), &[], |_, _| ())));
    record(&capture, 1, Direction::In, &bytes(60, 0));
    record(&capture, 1, Direction::In, &bytes(60, 0));
    assert!(capture.finish(PATIENCE));
    assert_eq!(read(&path).iter().map(|f| f.lost).collect::<Vec<_>>(), [3, 0]);
}

#[test]
fn workers_that_record_at_once_lose_nothing_and_mix_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("many");
    let capture = Capture::open(&CaptureOptions::to(&path)).unwrap();
    const EACH: usize = 800;
    let len = |n: usize| 60 + n * 37 % 5000;
    thread::scope(|scope| {
        for port in 0..4u16 {
            let capture = &capture;
            scope.spawn(move || {
                for n in 0..EACH {
                    let before = capture.counters();
                    record(capture, port, Direction::Out, &bytes(len(n), port as u8));
                    // Wait for the writer now and then, so that nothing needs to be dropped.
                    while n % 50 == 0 && capture.counters().written <= before.written {
                        thread::yield_now();
                    }
                }
            });
        }
    });
    assert!(capture.finish(PATIENCE));
    let frames = read(&path);
    assert_eq!((frames.len(), capture.counters().dropped), (4 * EACH, 0));
    for port in 0..4u8 {
        let own = frames.iter().filter(|f| f.interface == format!("port{port}"));
        assert!(own.enumerate().all(|(n, f)| f.bytes == bytes(len(n), port)), "in its order");
    }
}

#[test]
fn a_full_disk_stops_the_mirror_and_nobody_else() {
    let capture = Capture::open(&CaptureOptions::to("/dev/full")).unwrap();
    let end = Instant::now() + PATIENCE;
    while !capture.counters().stopped && Instant::now() < end {
        record(&capture, 1, Direction::In, &bytes(1500, 0));
    }
    assert!(capture.counters().stopped);
    let dropped = capture.counters().dropped;
    record(&capture, 1, Direction::In, &bytes(1500, 0));
    assert_eq!(capture.counters().dropped, dropped + 1);
}

#[test]
fn a_file_at_its_limit_ends_the_mirror() {
    let directory = tempfile::tempdir().unwrap();
    let options =
        CaptureOptions { max_bytes: Some(10_000), ..CaptureOptions::to(directory.path().join("small")) };
    let capture = Capture::open(&options).unwrap();
    (0..20).for_each(|_| record(&capture, 1, Direction::In, &bytes(1000, 0)));
    assert!(capture.finish(PATIENCE));
    assert!(fs::metadata(&options.path).unwrap().len() <= 10_000);
    assert_eq!(read(&options.path).len(), 9);
}

#[test]
fn files_rotate_and_the_oldest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ring");
    let options = CaptureOptions { max_bytes: Some(5000), files: 3, ..CaptureOptions::to(&path) };
    let capture = Capture::open(&options).unwrap();
    (0..20u8).for_each(|n| record(&capture, 1, Direction::In, &bytes(1000, n)));
    assert!(capture.finish(PATIENCE));
    let seeds =
        |name: &str| read(&directory.path().join(name)).iter().map(|f| f.bytes[0]).collect::<Vec<_>>();
    assert_eq!(seeds("ring.2"), [8, 9, 10, 11]);
    assert_eq!(seeds("ring.1"), [12, 13, 14, 15]);
    assert_eq!(seeds("ring"), [16, 17, 18, 19]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
}

#[test]
fn options_that_make_no_sense_are_named() {
    let good = CaptureOptions::to("x");
    assert_eq!(good.check(), Ok(()));
    let wrong = [
        (CaptureOptions::default(), "path"),
        (CaptureOptions { snaplen: 13, ..good.clone() }, "snaplen"),
        (CaptureOptions { max_bytes: Some(1), ..good.clone() }, "max-bytes"),
        (CaptureOptions { files: 0, ..good.clone() }, "files"),
        (CaptureOptions { files: 2, ..good }, "files needs max-bytes"),
    ];
    for (options, name) in wrong {
        assert!(options.check().unwrap_err().contains(name), "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    assert!(Capture::open(&CaptureOptions::to("/nonexistent/x")).is_err());
}
