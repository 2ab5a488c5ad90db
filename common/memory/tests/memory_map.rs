//! Memory messages against real files.

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;

use memory::{
    GuestAddr, MAX_REGIONS, MapError, MappingError, MemoryMap, MemoryTable, RegionConfig, RegionError,
};
use proptest::prelude::*;
use support::{PAGE, host, memfd, pattern, patterned, region, send, word};

#[test]
fn a_table_sent_again_keeps_every_mapping() {
    let (low, high) = (patterned(1, 4), patterned(2, 4));
    let regions = || vec![(region(0, 4, 0), send(&low)), (region(1 << 32, 4, 0), send(&high))];
    let mut map = MemoryMap::new();
    let first = map.set_table(regions()).expect("usable regions");
    let second = map.set_table(regions()).expect("usable regions");
    assert!(first.host_ranges().eq(second.host_ranges()));
    assert!(second.generation() > first.generation());
}

#[test]
fn only_the_regions_that_changed_are_mapped_anew() {
    let (kept, before, after) = (patterned(1, 4), patterned(2, 4), patterned(3, 4));
    let mut map = MemoryMap::new();
    let first = map
        .set_table(vec![(region(0, 4, 0), send(&kept)), (region(1 << 20, 4, 0), send(&before))])
        .expect("usable regions");
    let second = map
        .set_table(vec![(region(1 << 20, 4, 0), send(&after)), (region(0, 4, 0), send(&kept))])
        .expect("usable regions");
    assert_eq!(host(&first, 0), host(&second, 0));
    assert_ne!(host(&first, 1 << 20), host(&second, 1 << 20));
    assert_eq!(word(&second, 1 << 20), pattern(3, 0));
    assert_eq!(word(&first, 1 << 20), pattern(2, 0), "the old table still sees the old file");
}

#[test]
fn the_same_file_at_another_offset_is_mapped_anew() {
    let file = patterned(1, 8);
    let mut map = MemoryMap::new();
    map.set_table(vec![(region(0, 4, 0), send(&file))]).expect("usable regions");
    let table = map.set_table(vec![(region(0, 4, 4 * PAGE), send(&file))]).expect("usable regions");
    assert_eq!(word(&table, 0), pattern(1, 4 * PAGE));
}

#[test]
fn regions_come_and_go_without_moving_the_rest() {
    let file = patterned(1, 1);
    let mut map = MemoryMap::new();
    let address = |index: usize| index as u64 * 2 * PAGE;
    let mut hosts = Vec::new();
    for index in 0..MAX_REGIONS {
        let table = map.add(region(address(index), 1, 0), send(&file)).expect("a free slot");
        hosts.push(host(&table, address(index)));
    }
    let one_more = map.add(region(address(MAX_REGIONS), 1, 0), send(&file));
    assert!(matches!(one_more, Err(MapError::TooManyRegions { count: 510 })));
    for index in (0..MAX_REGIONS).step_by(2) {
        map.remove(&region(address(index), 1, 0)).expect("a region that is there");
    }
    for (index, before) in hosts.iter().enumerate() {
        let here = map.table().slice(GuestAddr(address(index)), 1).map(|slice| slice.range());
        assert_eq!(here.ok().map(|range| range.base), (index % 2 == 1).then_some(before.base));
    }
}

#[test]
fn a_region_that_is_there_already_is_not_added_twice() {
    let file = patterned(1, 8);
    let mut map = MemoryMap::new();
    let first = map.add(region(0, 4, 0), send(&file)).expect("a usable region");
    let again = map.add(region(0, 4, 0), send(&file)).expect("the same region");
    assert_eq!((again.generation(), again.regions().count()), (first.generation(), 1));
    map.add(region(0, 4, 0), send(&patterned(2, 8))).expect_err("another file in the same place");
}

#[test]
fn a_region_is_removed_whatever_its_offset_says() {
    let file = patterned(1, 8);
    let mut map = MemoryMap::new();
    map.add(region(0, 4, 4 * PAGE), send(&file)).expect("a usable region");
    assert!(matches!(map.remove(&region(0, 3, 0)), Err(MapError::Unknown { .. })));
    assert!(matches!(map.remove(&region(PAGE, 4, 0)), Err(MapError::Unknown { .. })));
    let table = map.remove(&region(0, 4, 0)).expect("the same place");
    assert_eq!(table.regions().count(), 0);
}

#[test]
fn a_refused_message_leaves_the_table_as_it_was() {
    let file = patterned(1, 4);
    let mut map = MemoryMap::new();
    let before = map.add(region(PAGE, 2, 0), send(&file)).expect("a usable region");
    for (config, name) in [
        (region(2 * PAGE, 2, 0), "overlap"),
        (region(8 * PAGE, 0, 0), "empty"),
        (RegionConfig { guest: GuestAddr(8 * PAGE + 1), ..region(8 * PAGE, 1, 0) }, "misaligned"),
        (region(8 * PAGE, 5, 0), "longer than the file"),
        (region(8 * PAGE, 1, u64::MAX - PAGE + 1), "offset past the end of any file"),
    ] {
        assert!(map.add(config, send(&file)).is_err(), "{name}");
        assert!(
            map.set_table(vec![(config, send(&file)), (region(3 * PAGE, 1, 0), send(&file))]).is_err(),
            "{name}"
        );
    }
    assert_eq!(map.table().generation(), before.generation());
    assert_eq!(word(map.table(), PAGE), pattern(1, 0));
}

#[test]
fn a_file_that_is_too_short_is_refused_with_both_sizes() {
    let file = memfd(0, 3 * PAGE).expect("memfd");
    let refused = MemoryMap::new().add(region(0, 2, 2 * PAGE), send(&file)).err();
    let Some(MapError::Region { source: RegionError::Mapping(source), .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(source, MappingError::FileTooShort { needed: 16384, actual: 12288 }));
}

#[test]
fn a_file_that_has_shrunk_is_refused_although_it_is_mapped() {
    let file = patterned(1, 4);
    let mut map = MemoryMap::new();
    map.set_table(vec![(region(0, 4, 0), send(&file))]).expect("a usable region");
    file.set_len(PAGE).expect("truncate");
    assert!(map.set_table(vec![(region(0, 4, 0), send(&file))]).is_err());
}

#[test]
fn a_descriptor_that_cannot_be_mapped_is_refused() {
    let null = File::open("/dev/null").expect("/dev/null");
    let read_only = tempfile::NamedTempFile::new().expect("a temporary file");
    read_only.as_file().set_len(PAGE).expect("length");
    let read_only = File::open(read_only.path()).expect("open for reading");
    for file in [null, read_only] {
        let refused = MemoryMap::new().add(region(0, 1, 0), send(&file)).err();
        assert!(
            matches!(
                refused,
                Some(MapError::Region { source: RegionError::Mapping(MappingError::Map(_)), .. })
            ),
            "{refused:?}"
        );
    }
}

#[test]
fn mapping_keeps_no_descriptor_open() {
    // Other tests of this binary open descriptors at the same time, so look for this very file.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("memory-that-nobody-else-opens");
    let file = File::create_new(&path).expect("a new file");
    file.set_len(4 * PAGE).expect("length");
    let read_write =
        || -> OwnedFd { File::options().read(true).write(true).open(&path).expect("open").into() };
    drop(file);
    let mut map = MemoryMap::new();
    map.set_table(vec![(region(0, 2, 0), read_write())]).expect("a usable region");
    map.add(region(4 * PAGE, 2, 0), read_write()).expect("a usable region");
    map.add(region(5 * PAGE, 2, 0), read_write()).expect_err("an overlap");
    map.set_table(vec![(region(0, 2, 0), read_write())]).expect("a usable region");
    let open = std::fs::read_dir("/proc/self/fd")
        .expect("/proc/self/fd")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    assert_eq!(open.filter(|target| *target == path).count(), 0);
}

#[test]
fn a_mapping_goes_with_the_last_table_that_has_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("memory-that-nobody-else-maps");
    let file = File::create_new(&path).expect("a new file");
    file.set_len(4 * PAGE).expect("length");
    let fd = File::options().read(true).write(true).open(&path).expect("open").into();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        maps.contains("memory-that-nobody-else-maps")
    };
    let mut map = MemoryMap::new();
    let table = map.set_table(vec![(region(0, 4, 0), fd)]).expect("a usable region");
    let area = table.area(GuestAddr(0), 64).expect("inside");
    map.clear();
    drop(table);
    assert!(mapped(), "the area still needs it");
    drop(area);
    assert!(!mapped());
}

#[test]
fn two_regions_of_one_file_share_its_pages() {
    let file = patterned(1, 8);
    let mut map = MemoryMap::new();
    let table = map
        .set_table(vec![(region(0, 8, 0), send(&file)), (region(1 << 30, 2, 3 * PAGE), send(&file))])
        .expect("usable regions");
    assert_eq!(word(&table, 1 << 30), pattern(1, 3 * PAGE));
    table.slice(GuestAddr(3 * PAGE), 8).expect("inside").fill(0xaa);
    assert_eq!(word(&table, 1 << 30), 0xaaaa_aaaa_aaaa_aaaa);
}

/// One message of the frontend, with files by number.
#[derive(Clone, Debug)]
enum Message {
    Set(Vec<(RegionConfig, usize)>),
    Add(RegionConfig, usize),
    Remove(RegionConfig),
    Clear,
}

const FILES: usize = 3;
const FILE_PAGES: u64 = 8;

fn any_region() -> impl Strategy<Value = RegionConfig> {
    (0..12_u64, 1..4_u64, 0..=FILE_PAGES)
        .prop_map(|(guest, pages, offset)| region(guest * PAGE, pages, offset * PAGE))
}

fn any_message() -> impl Strategy<Value = Message> {
    let with_file = || (any_region(), 0..FILES);
    prop_oneof![
        3 => prop::collection::vec(with_file(), 0..5).prop_map(Message::Set),
        6 => with_file().prop_map(|(config, file)| Message::Add(config, file)),
        3 => any_region().prop_map(Message::Remove),
        1 => Just(Message::Clear),
    ]
}

/// The regions a frontend would believe in, kept by the rules alone.
#[derive(Default)]
struct Model(Vec<(RegionConfig, usize)>);

impl Model {
    fn apply(&mut self, message: &Message) -> bool {
        let mut next = self.0.clone();
        match message {
            Message::Set(regions) => next = regions.clone(),
            Message::Add(config, file) if next.contains(&(*config, *file)) => {}
            Message::Add(config, file) => next.push((*config, *file)),
            Message::Clear => next.clear(),
            Message::Remove(config) => {
                let before = next.len();
                next.retain(|(present, _)| (present.guest, present.len) != (config.guest, config.len));
                if next.len() == before {
                    return false;
                }
            }
        }
        let in_file = |config: &RegionConfig| config.mmap_offset + config.len <= FILE_PAGES * PAGE;
        let pages =
            |config: &RegionConfig| (config.guest.0..config.guest.0 + config.len).step_by(PAGE as usize);
        let mut seen = std::collections::HashSet::new();
        let disjoint = next.iter().flat_map(|(config, _)| pages(config)).all(|page| seen.insert(page));
        if !disjoint || !next.iter().all(|(config, _)| in_file(config)) {
            return false;
        }
        next.sort_by_key(|(config, _)| config.guest);
        self.0 = next;
        true
    }
}

fn apply(map: &mut MemoryMap, message: &Message, files: &[File]) -> bool {
    let with_fd = |(config, file): &(RegionConfig, usize)| (*config, send(&files[*file]));
    match message {
        Message::Set(regions) => map.set_table(regions.iter().map(with_fd).collect()).is_ok(),
        Message::Add(config, file) => map.add(*config, send(&files[*file])).is_ok(),
        Message::Remove(config) => map.remove(config).is_ok(),
        Message::Clear => {
            map.clear();
            true
        }
    }
}

/// The same regions and the same bytes as a map that is built from nothing.
fn assert_rebuilt(table: &MemoryTable, model: &Model, files: &[File]) {
    let regions = model.0.iter().map(|(config, file)| (*config, send(&files[*file]))).collect();
    let rebuilt = MemoryMap::new().set_table(regions).expect("the model's regions are usable");
    assert!(table.regions().eq(rebuilt.regions()));
    for page in (0..16 * PAGE).step_by(PAGE as usize) {
        let words = [table, &rebuilt].map(|table| {
            table.slice(GuestAddr(page), PAGE as usize).ok().and_then(|slice| slice.read_obj::<u64>(0))
        });
        assert_eq!(words[0], words[1]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_messages_ends_as_if_built_from_scratch(
        messages in prop::collection::vec(any_message(), 1..24)
    ) {
        let files: Vec<File> = (0..FILES as u64).map(|tag| patterned(tag + 1, FILE_PAGES)).collect();
        let (mut map, mut model) = (MemoryMap::new(), Model::default());
        for message in &messages {
            let before: Vec<_> = model.0.iter().map(|(config, file)| (*config, *file, host(map.table(), config.guest.0))).collect();
            prop_assert_eq!(apply(&mut map, message, &files), model.apply(message));
            assert_rebuilt(map.table(), &model, &files);
            for (config, file) in &model.0 {
                let kept = before.iter().find(|(old, old_file, _)| (old, old_file) == (config, file));
                if let Some((.., at)) = kept {
                    prop_assert_eq!(host(map.table(), config.guest.0), *at, "an unchanged region has moved");
                }
            }
        }
    }
}
