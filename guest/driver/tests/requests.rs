//! The client on a device over a socket: results, order, and what becomes of requests when the device does not do them.

mod support;

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use compress_protocol::{Config, feature};
use guest_driver::compress::{
    By, Checksum, Client, Direction, Flush, Format, Full, Options, Place, Request, Shared, Status,
    StreamError,
};
use guest_driver::fallback::Reason;
use guest_driver::reaper::Reaper;
use support::{Daemon, Mood, OFFERS, config, text};
use virtqueue::RingFeatures;

fn start(offers: u64) -> (tempfile::TempDir, Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), offers, config());
    (dir, daemon)
}

fn round_trip(client: &mut Client, format: Format, data: &[u8]) {
    let packed = client.run(&Request::compress(format, data).checksum(Checksum::Xxh64));
    assert_eq!(
        (packed.status, packed.by, packed.consumed),
        (Status::Ok, By::Device, data.len()),
        "{format:?}"
    );
    let back = client.run(&Request::decompress(format, &packed.output, data.len()).checksum(Checksum::Xxh64));
    assert_eq!((back.status, back.by), (Status::Ok, By::Device), "{format:?}");
    assert!(back.output == data && back.checksum == packed.checksum, "{format:?}");
}

#[test]
fn every_format_makes_the_round_trip_on_every_kind_of_ring() {
    for lacks in [0, RingFeatures::RING_PACKED, RingFeatures::INDIRECT_DESC, RingFeatures::EVENT_IDX] {
        for packed in [true, false] {
            let (_dir, daemon) = start(OFFERS & !lacks);
            let mut client = Client::open(Options { packed, queues: 2, ..daemon.options() });
            assert!(client.problem().is_none());
            let on_packed =
                daemon.negotiated.load(std::sync::atomic::Ordering::Relaxed) & RingFeatures::RING_PACKED != 0;
            assert_eq!(on_packed, packed && lacks != RingFeatures::RING_PACKED);
            for format in Format::ALL {
                for len in [0, 1, 4096, 200_000] {
                    round_trip(&mut client, format, &text(len, len));
                }
            }
            assert_eq!(client.counters().in_software(), 0);
        }
    }
}

#[test]
fn a_batch_is_one_notification_and_its_results_belong_to_their_requests() {
    let (_dir, daemon) = start(OFFERS);
    let mut client = Client::open(Options { depth: 8, ..daemon.options() });
    let sources: Vec<_> = (0..20).map(|seed| text(seed, 5000 + seed)).collect();
    let requests: Vec<_> = sources.iter().map(|source| Request::compress(Format::Zstd, source)).collect();
    let mut tickets = Vec::new();
    let before = client.kicks();
    assert_eq!(client.submit_batch(&requests, &mut tickets), 8, "as many as can be in flight");
    assert!(client.kicks() <= before + 1);
    assert!(matches!(client.submit(&requests[8], Vec::new()), Err(Full(_))));
    let mut seen = 0;
    while let Some(done) = client.wait() {
        let index = tickets.iter().position(|ticket| *ticket == done.ticket).unwrap();
        let back = client.run(&Request::decompress(Format::Zstd, &done.output, 10_000));
        assert_eq!(back.output, sources[index]);
        seen += 1;
    }
    assert_eq!((seen, client.pending()), (8, 0));
}

#[test]
fn what_is_wrong_with_the_data_is_the_answer_and_no_reason_for_software() {
    let (_dir, daemon) = start(OFFERS);
    let mut client = Client::open(daemon.options());
    let data = text(1, 10_000);
    let packed = client.run(&Request::compress(Format::Gzip, &data)).into_result().unwrap();
    let mut run = |source: &[u8], room| client.run(&Request::decompress(Format::Gzip, source, room)).status;
    assert_eq!(run(&packed, data.len() - 1), Status::Overflow);
    assert_eq!(run(&packed[..packed.len() - 9], data.len()), Status::Truncated);
    assert_eq!(run(b"this is no gzip member", 100), Status::BadData);
    let noise: Vec<u8> = (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tight = client.run(&Request::compress(Format::Gzip, &noise).room(100));
    assert_eq!((tight.status, tight.by, tight.output.len()), (Status::Incompressible, By::Device, 0));
    assert_eq!(client.counters().in_software(), 0);
}

#[test]
fn software_does_what_the_device_does_not_and_says_why() {
    let (_dir, daemon) = start(OFFERS);
    let mut client = Client::open(Options { deadline: Duration::from_millis(50), ..daemon.options() });
    let data = text(2, 20_000);
    let moods = [
        (Mood::Answers(Status::Busy), Reason::Busy),
        (Mood::Answers(Status::NotSupported), Reason::Unsupported),
        (Mood::Answers(Status::Error), Reason::Failed),
        (Mood::Boasts, Reason::Failed),
        (Mood::Sleeps, Reason::Slow),
    ];
    for (mood, reason) in moods {
        daemon.mood(mood);
        let before = client.counters().software(reason);
        let done = client.run(&Request::compress(Format::Lz4Frame, &data));
        assert_eq!((done.status, done.by), (Status::Ok, By::Software), "{mood:?}");
        assert_eq!(client.counters().software(reason), before + 1, "{mood:?}");
        let back = client.run(&Request::decompress(Format::Lz4Frame, &done.output, data.len()));
        assert_eq!(back.output, data, "{mood:?}");
    }
}

#[test]
fn a_slow_device_is_left_alone_for_a_while_and_then_used_again() {
    let (_dir, daemon) = start(OFFERS);
    let (deadline, pause) = (Duration::from_millis(20), Duration::from_millis(300));
    let mut client = Client::open(Options { deadline, pause, depth: 2, ..daemon.options() });
    let data = text(3, 3000);
    let mut run = || client.run(&Request::compress(Format::Zlib, &data)).by;
    assert_eq!(run(), By::Device);
    daemon.mood(Mood::Sleeps);
    assert_eq!(run(), By::Software);
    let served = daemon.count();
    assert_eq!(run(), By::Software, "at once, without a request");
    daemon.mood(Mood::Honest);
    let begin = Instant::now();
    while run() == By::Software {
        assert!(begin.elapsed() < Duration::from_secs(10), "the device is not used again");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The late answer is nobody's, and its place is free again.
    assert!(daemon.count() >= served + 2);
    assert_eq!((run(), run(), run()), (By::Device, By::Device, By::Device));
}

#[test]
fn requests_of_a_daemon_that_dies_end_in_software_and_its_successor_is_found() {
    let (dir, daemon) = start(OFFERS);
    let mut client = Client::open(Options { pause: Duration::from_millis(50), ..daemon.options() });
    daemon.mood(Mood::Sleeps);
    let sources: Vec<_> = (0..5).map(|seed| text(seed, 9000)).collect();
    for source in &sources {
        client.submit(&Request::compress(Format::Gzip, source), Vec::new()).unwrap();
    }
    drop(daemon);
    let mut results: Vec<_> = std::iter::from_fn(|| client.wait()).collect();
    results.sort_by_key(|done| done.ticket);
    assert_eq!(results.len(), sources.len());
    for (done, source) in results.iter().zip(&sources) {
        assert_eq!((done.status, done.by), (Status::Ok, By::Software));
        let back = client.run(&Request::decompress(Format::Gzip, &done.output, source.len()));
        assert_eq!(&back.output, source);
    }
    assert!(client.counters().software(Reason::Lost) >= 5);
    let _successor = Daemon::start(dir.path(), OFFERS, config());
    let begin = Instant::now();
    while client.run(&Request::compress(Format::Gzip, &sources[0])).by == By::Software {
        assert!(begin.elapsed() < Duration::from_secs(10), "the successor is not found");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn requests_beyond_the_device_go_to_software() {
    let dir = tempfile::tempdir().unwrap();
    let mut few = config();
    few.compress_formats = Format::Gzip.bit();
    few.max_src = 8192;
    let daemon = Daemon::start(dir.path(), OFFERS, few);
    let mut client = Client::open(Options { small: 100, ..daemon.options() });
    let reason = |client: &mut Client, request: Request<'_>, expected: Option<Reason>| {
        let done = client.run(&request);
        assert_eq!(done.status, Status::Ok);
        match expected {
            None => assert_eq!(done.by, By::Device),
            Some(reason) => assert_eq!(client.counters().software(reason), 1, "{reason}"),
        }
    };
    let data = text(4, 8193);
    reason(&mut client, Request::compress(Format::Gzip, &data[..8192]), None);
    reason(&mut client, Request::compress(Format::Gzip, &data), Some(Reason::TooLarge));
    reason(&mut client, Request::compress(Format::Zstd, &data[..8192]), Some(Reason::Unsupported));
    reason(&mut client, Request::compress(Format::Gzip, &data[..99]), Some(Reason::Small));
}

#[test]
fn without_a_device_there_is_a_reason_and_a_result() {
    let mut client =
        Client::open(Options { place: Place::Socket("/nowhere/vcomp.sock".into()), ..Options::default() });
    assert!(client.problem().is_some_and(|problem| problem.in_full().contains("/nowhere/vcomp.sock")));
    let done = client.run(&Request::sum(Checksum::Crc32, b"123456789"));
    assert_eq!((done.status, done.by, done.checksum), (Status::Ok, By::Software, 0xcbf4_3926));
    assert_eq!(client.counters().software(Reason::Absent), 1);
}

#[test]
fn streams_are_in_software_where_the_device_has_none() {
    let (_dir, daemon) = start(OFFERS);
    let mut client = Client::open(daemon.options());
    let data = text(5, 300_000);
    for format in [Format::Zlib, Format::Gzip, Format::Zstd, Format::Lz4Frame] {
        assert!(!client.has_streams(format));
        let mut packed = Vec::new();
        let mut stream = client.open_stream(Direction::Compress, format, 0).unwrap();
        let mut rest = &data[..];
        loop {
            let (source, last) = (&rest[..rest.len().min(70_000)], rest.len() <= 70_000);
            let flush = if last { Flush::Finish } else { Flush::No };
            let step = client.step(&mut stream, source, flush, 10_000, &mut packed).unwrap();
            rest = &rest[step.consumed..];
            if step.end {
                break;
            }
        }
        client.close_stream(stream);
        let back = client.run(&Request::decompress(format, &packed, data.len()));
        assert!(back.output == data, "{format:?}: {:?}", back.status);
    }
}

#[test]
fn a_stream_that_its_device_has_lost_is_begun_again_in_software() {
    let streams = Config { features: config().features | feature::STREAM, max_streams: 4, ..config() };
    for (status, reason) in
        [(Status::BadStream, Reason::Lost), (Status::Error, Reason::Failed), (Status::Busy, Reason::Busy)]
    {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(dir.path(), OFFERS | feature::STREAM, streams);
        let mut client = Client::open(daemon.options());
        let open = |client: &mut Client| client.open_stream(Direction::Compress, Format::Zlib, 0).unwrap();
        let mut stream = open(&mut client);
        assert_eq!(stream.by(), By::Device);
        daemon.mood(Mood::Answers(status));
        let step = client.step(&mut stream, b"some text", Flush::Finish, 100, &mut Vec::new());
        assert_eq!((step, client.counters().software(reason)), (Err(StreamError::Lost), 1));
        daemon.mood(Mood::Honest);
        let mut again = open(&mut client);
        let step = client.step(&mut again, b"some text", Flush::Finish, 100, &mut Vec::new());
        assert!(again.by() == By::Software && step.unwrap().end);
        assert_eq!(client.run(&Request::compress(Format::Zlib, b"some text")).by, By::Device);
    }
}

#[test]
fn futures_of_many_tasks_share_the_client() {
    let (_dir, daemon) = start(OFFERS);
    let client = Client::open(Options { depth: 4, ..daemon.options() });
    let shared = Shared::new(client, Reaper::default());
    let sources: Vec<_> = (0..12).map(|seed| text(seed, 4000)).collect();
    let mut tasks: Vec<_> = sources
        .iter()
        .map(|source| {
            let shared = shared.clone();
            Box::pin(async move {
                let _task = shared.task();
                let packed = shared.run(Request::compress(Format::Gzip, source)).await;
                assert_eq!(packed.by, By::Device);
                let request = Request::decompress(Format::Gzip, &packed.output, source.len());
                shared.run(request).await.into_result().unwrap()
            })
        })
        .collect();
    let mut results = vec![None; tasks.len()];
    let begin = Instant::now();
    while results.iter().any(Option::is_none) {
        assert!(begin.elapsed() < Duration::from_secs(30), "a future does not end");
        for (task, result) in tasks.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(output) = task.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                *result = Some(output);
            }
        }
    }
    assert!(results.iter().flatten().eq(sources.iter()));
    assert_eq!(shared.counters().device, 24);
}
