//! One test for each feature bit the device offers: `FEATURES` names them.

use crate::formats::{compress, compressed, decompress};
use crate::frontend::{Cut, PACKED, Request, SPLIT, Server, Setup, Vmm, eventually};
use crate::samples::{checksum, text};
use compress_offload::features::*;
use compress_protocol::{Checksum, Format, Header, Opcode, Status, flag, response_flag};

#[test]
fn every_offered_bit_has_a_named_test() {
    let source = include_str!("features.rs");
    for feature in FEATURES {
        let definition = format!("#[test]\nfn {}()", feature.test);
        assert!(source.contains(&definition), "{} has no test {}", feature.name, feature.test);
    }
    let server = Server::new();
    let vmm = Vmm::running(&server, u64::MAX);
    let of_vhost_user = 1 << 26 | 1 << 30;
    assert_eq!(vmm.session.features() & !of_vhost_user, offered());
}

/// A request that gets NOT_SUPPORTED unless the feature was negotiated, whatever else was.
fn only_with(feature: u64, request: impl Into<Request>) {
    let request = request.into();
    for (wanted, has) in [(SPLIT, true), (SPLIT & !feature, false), (feature, true), (0, false)] {
        let server = Server::new();
        let mut vmm = Vmm::running(&server, wanted);
        let status = vmm.ask(request.clone()).status();
        assert_eq!(status != Status::NotSupported, has, "{status} with {wanted:#x}");
        let data = text(100);
        let packed = compressed(&mut vmm, Format::Zlib, &data);
        assert!(vmm.ask(decompress(Format::Zlib, &packed, 100)).result() == data, "the rest is as it was");
    }
}

#[test]
fn stream_lets_a_file_be_compressed_piece_by_piece() {
    only_with(VIRTIO_COMPRESS_F_STREAM, Header::open_compressor(Format::Gzip, 0));
    only_with(VIRTIO_COMPRESS_F_STREAM, Header::stream(Opcode::Compress, 1, 0, 0, 0));
    only_with(VIRTIO_COMPRESS_F_STREAM, Header::close(1));
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let id = vmm.ask(Header::open_compressor(Format::Gzip, 0)).response.stream_id();
    let mut packed = Vec::new();
    for (piece, end) in [("one ", 0), ("two ", 0), ("three", flag::FINISH)] {
        let header = Header::stream(Opcode::Compress, id, end, piece.len() as u32, 100);
        packed.extend(vmm.ask(Request::new(header, piece.as_bytes())).result());
    }
    assert_eq!(vmm.ask(decompress(Format::Gzip, &packed, 100)).result(), b"one two three");
}

#[test]
fn checksum_sums_up_the_uncompressed_data() {
    only_with(VIRTIO_COMPRESS_F_CHECKSUM, Header::checksum(Checksum::Crc32, 0));
    only_with(
        VIRTIO_COMPRESS_F_CHECKSUM,
        Header::compress(Format::Zlib, 0, 100).with_checksum(Checksum::Adler32),
    );
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = text(1000);
    let header = Header::compress(Format::Zstd, 1000, 1300).with_checksum(Checksum::Crc32);
    let answer = vmm.ask(Request::new(header, &data));
    assert_eq!(answer.response.checksum, checksum(Checksum::Crc32, &data));
}

#[test]
fn verify_reads_a_result_back_before_it_is_given_out() {
    let header = Header::compress(Format::Gzip, 0, 100).with_flags(flag::VERIFY);
    only_with(VIRTIO_COMPRESS_F_VERIFY, header);
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    assert_eq!(vmm.ask(header).response.flags, response_flag::VERIFIED);
}

#[test]
fn indirect_tables_hold_requests() {
    for wanted in [SPLIT, PACKED] {
        let server = Server::new();
        let mut vmm = Vmm::running(&server, wanted);
        assert_ne!(vmm.session.features() & VIRTIO_F_INDIRECT_DESC, 0);
        let before = vmm.session.rings[0].ring.free();
        let data = text(5000);
        let cookie = vmm.put(0, compress(Format::Zlib, &data, 6000).cut(Cut::Every(40)).indirect());
        assert_eq!(before - vmm.session.rings[0].ring.free(), 1, "one descriptor of the ring");
        vmm.publish(0);
        let packed = vmm.wait(cookie);
        assert!(vmm.ask(decompress(Format::Zlib, packed.result(), 5000).indirect()).result() == data);
    }
    // Who has not negotiated them may not use them.
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT & !VIRTIO_F_INDIRECT_DESC);
    let table = vmm.scratch(32);
    vmm.session.rings[0].ring.add_prebuilt(table.addr, 2, 1, 77).unwrap();
    vmm.publish(0);
    eventually("the ring is broken", || server.queue(0).broken == 1);
}

#[test]
fn event_idx_saves_kicks_and_interrupts() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    assert_ne!(vmm.session.features() & VIRTIO_F_EVENT_IDX, 0);
    let request = || compress(Format::Zlib, &text(100), 300);
    // A ring that has just started interrupts once in any case.
    vmm.ask(request());
    // A driver that has asked for no interrupts puts its event index far away.
    vmm.session.rings[0].ring.suppress();
    let before = server.queue(0);
    let cookies: Vec<u32> = (0..40).map(|_| vmm.put(0, request())).collect();
    vmm.publish(0);
    vmm.wait_all(&cookies);
    let after = server.queue(0);
    assert_eq!(after.interrupts, before.interrupts);
    assert!(after.interrupts_suppressed > before.interrupts_suppressed);
    assert!(after.kicks <= before.kicks + 1, "one kick for forty requests");
    // One that waits gets its interrupt.
    assert!(!vmm.session.rings[0].ring.arm());
    vmm.ask(request());
    eventually("the interrupt is counted", || server.queue(0).interrupts > after.interrupts);
}

#[test]
fn version_1_is_the_only_interface() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, 0);
    assert_ne!(vmm.session.features() & VIRTIO_F_VERSION_1, 0);
    // Little-endian whatever the host is, and no ring feature taken for granted.
    let answer = vmm.ask(Header::get_config());
    assert_eq!(&answer.result()[..6], b"VCMP\x01\0");
}

#[test]
fn ring_packed_serves_every_operation() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, PACKED);
    assert_ne!(vmm.session.features() & VIRTIO_F_RING_PACKED, 0);
    // More requests than the ring has entries.
    for round in 0..100 {
        let data = text(round * 7);
        for format in Format::ALL {
            let packed = compressed(&mut vmm, format, &data);
            assert!(vmm.ask(decompress(format, &packed, data.len())).result() == data);
        }
        assert_eq!(vmm.ask(Request::new(Header::checksum(Checksum::Crc32, 0), &[])).response.checksum, 0);
        let id = vmm.ask(Header::open_compressor(Format::Zlib, 0)).response.stream_id();
        assert_eq!(vmm.ask(Header::close(id)).status(), Status::Ok);
    }
}

#[test]
fn ring_reset_starts_a_queue_anew_while_others_run() {
    for wanted in [SPLIT, PACKED] {
        let server = Server::with(Setup { queues: 2, ..Setup::default() });
        let mut vmm = Vmm::running(&server, wanted);
        assert_ne!(vmm.session.features() & VIRTIO_F_RING_RESET, 0);
        let open = |vmm: &mut Vmm, queue| {
            vmm.ask_on(queue, Header::open_compressor(Format::Gzip, 0)).response.stream_id()
        };
        let streams = [open(&mut vmm, 0), open(&mut vmm, 1)];
        vmm.session.stop_queue(0).unwrap();
        let data = text(3000);
        assert_eq!(vmm.ask_on(1, compress(Format::Zlib, &data, 4000)).status(), Status::Ok);
        vmm.renew_queue(0);
        assert_eq!(vmm.ask_on(0, compress(Format::Zlib, &data, 4000)).status(), Status::Ok);
        // The streams of the queue went with it, those of the other did not.
        assert_eq!(vmm.ask_on(0, Header::close(streams[0])).status(), Status::BadStream);
        assert_eq!(vmm.ask_on(1, Header::close(streams[1])).status(), Status::Ok);
    }
}

#[test]
fn in_order_is_not_offered_since_small_requests_would_wait_for_large_ones() {
    assert_eq!(offered() & 1 << 35, 0);
}
