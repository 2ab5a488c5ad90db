//! The driver of compression devices, and the submitter of the composite experiment, against cards in this process, honest and
//! lying.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use benches::composite::{self, Sockets, Way};
use benches::compress::material::Material;
use benches::compress::{self, Load, Report, Target};
use benches::guest::{Shown, options};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::compress_card::{Card, Lie};
use crate::memory_disk::{self, Shared};

struct Bench {
    _folder: TempDir,
    card: Arc<Card>,
    socket: PathBuf,
    _backend: Backend,
}

impl Bench {
    fn new(lie: Lie) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("compress.sock");
        let card = Card::new(lie);
        let backend = Backend::start(&socket, &card);
        Self { _folder: folder, card, socket, _backend: backend }
    }

    fn try_run(&self, options: &str) -> anyhow::Result<Report> {
        let load = Load::parse(&format!("--size 4k --corpus-size 256k {options}")).unwrap();
        let target = Target { socket: &self.socket, control: None };
        compress::run(target, &load, &mut |_| {})
    }

    fn run(&self, options: &str) -> Report {
        self.try_run(options).unwrap_or_else(|error| panic!("{options}: {error:#}"))
    }
}

/// Each result is right, and each request was counted.
fn all_right(options: &str) -> Report {
    let bench = Bench::new(Lie::None);
    let report = bench.run(&format!("--requests 300 --verify {options}"));
    assert!(report.is_clean(), "{options}: {}", report.table());
    assert_eq!(report.operations, 300, "{options}: {}", report.table());
    assert_eq!(report.verified + report.incompressible, 300, "{options}: {}", report.table());
    assert_eq!(bench.card.served(), 300, "{options}");
    report
}

#[test]
fn every_format_is_driven_in_both_directions_with_every_checksum() {
    for (format, checksum) in [
        ("deflate", "crc32"),
        ("zlib", "adler32"),
        ("gzip", "none"),
        ("zstd", "xxh64"),
        ("lz4", "xxh32"),
        ("lz4-block", "crc32"),
    ] {
        let of = |op: &str| all_right(&format!("--op {op} --format {format} --checksum {checksum}")).ratio;
        let (there, back) = (of("compress"), of("decompress"));
        assert!(there.unwrap() > 1.2 && back.unwrap() > 1.2, "{format}: {there:?} {back:?}");
    }
    assert_eq!(all_right("--op checksum --checksum xxh64").ratio, None);
}

#[test]
fn requests_are_right_in_every_kind_of_ring_and_cut_into_pieces() {
    for options in [
        "--packed",
        "--packed --indirect --in-order",
        "--indirect --segments 7",
        "--segments 3 --depth 8 --op decompress",
        "--no-event-idx --interrupt",
        "--depth 1 --verified",
        "--rate 20k --interrupt --depth 4",
    ] {
        all_right(options);
    }
}

#[test]
fn every_queue_begins_with_a_block_of_its_own_and_has_its_part_of_the_ratio() {
    let report = Bench::new(Lie::None).run("--queues 2 --requests 64 --verify");
    assert!(report.is_clean() && report.verified == 128, "{}", report.table());
    assert!(report.ratio.unwrap() > 1.2, "{}", report.table());
}

#[test]
fn what_does_not_shrink_is_no_error_and_counts_as_it_is() {
    let report = all_right("--corpus random --format zlib");
    assert_eq!((report.incompressible, report.verified, report.ratio), (300, 0, Some(1.0)));
    let report = all_right("--corpus zeros --room 100");
    assert_eq!(report.incompressible, 0);
}

#[test]
fn every_kind_of_lie_is_caught() {
    for lie in [Lie::Corrupt, Lie::Skip, Lie::WrongSum] {
        let report = Bench::new(lie).run("--requests 500 --verify --checksum crc32 --corpus text");
        assert_eq!((report.wrong, report.verified), (10, 500), "{lie:?} went unnoticed: {}", report.table());
        assert!(report.mismatches[0].contains("compress zlib, block "), "{:?}", report.mismatches);
    }
    for (lie, part) in [
        (Lie::WrongTag, "the answer to another request"),
        (Lie::NoResponse, "wrote no answer"),
        (Lie::Fail, "9 (error)"),
    ] {
        let report = Bench::new(lie).run("--requests 500 --continue-on-error");
        assert_eq!(report.errors, 10, "{lie:?}: {}", report.table());
        assert!(report.first_error.as_ref().unwrap().contains(part), "{:?}", report.first_error);
    }
}

#[test]
fn a_device_that_is_another_or_cannot_do_it_is_refused_in_one_sentence() {
    let error = |lie, options| format!("{:#}", Bench::new(lie).try_run(options).err().unwrap());
    assert!(error(Lie::Foreign, "").contains("Not a compression device"));
    assert!(error(Lie::Lz4Only, "").contains("does not compress zlib"));
    assert!(error(Lie::Lz4Only, "--op decompress --format zstd").contains("does not decompress zstd"));
    assert!(error(Lie::None, "--level 12").contains("levels 1 to 9 of zlib, 12 is asked for"));
    assert!(error(Lie::None, "--queues 3").contains("has 2 queues, 3 are asked for"));
    assert!(error(Lie::None, "--room 2m").contains("bytes of destination"));
}

/// The data set goes to a disk of this process and comes back.
fn composite(
    way: Way,
    options: &str,
    disk_lie: memory_disk::Lie,
    lie: Lie,
) -> anyhow::Result<composite::Run> {
    let text = format!("--size 2m --record 32k --corpus-size 1m --depth 8 {options}");
    let options: composite::Options = options::parse(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [disk, compressor] = ["disk.sock", "compress.sock"].map(|name| folder.path().join(name));
    let shared = Shared::new(2 << 20);
    shared.lie(disk_lie);
    let _disk = Backend::start(&disk, &shared);
    let _card = Backend::start(&compressor, &Card::new(lie));
    let corpus = options.corpus.load(options.corpus_size as usize, options.seed).unwrap();
    let material = Material::of(corpus, options.record as usize).unwrap();
    let sockets = Sockets { disk: &disk, compressor: &compressor };
    composite::submit(&options, sockets, &material, way, &|| Ok([Duration::ZERO; 2]))
}

#[test]
fn a_data_set_comes_back_as_it_was_on_each_of_the_three_ways() {
    for way in Way::ALL {
        let run = composite(way, "", memory_disk::Lie::None, Lie::None).unwrap();
        assert_eq!(run.bytes, 2 << 20);
        let packed = way != Way::None;
        assert_eq!(run.stored < run.bytes * 3 / 4, packed, "{way:?}: {} bytes", run.stored);
        assert!(run.write.seconds > 0.0 && run.read.submitter_cpu > 0.0, "{run:?}");
    }
}

#[test]
fn records_that_do_not_shrink_are_stored_as_they_are() {
    for way in Way::ALL {
        let run = composite(way, "--corpus random", memory_disk::Lie::None, Lie::None).unwrap();
        assert_eq!(run.stored, run.bytes, "{way:?}");
    }
}

#[test]
fn a_record_that_comes_back_changed_ends_the_experiment() {
    for way in Way::ALL {
        let error = composite(way, "", memory_disk::Lie::CorruptRead, Lie::None).err().unwrap();
        assert!(format!("{error:#}").starts_with("Reading back: "), "{way:?}: {error:#}");
    }
    let error = composite(Way::Offload, "", memory_disk::Lie::None, Lie::Fail).err().unwrap();
    assert!(format!("{error:#}").contains("ended a request with error"), "{error:#}");
}
