//! Any sequence of memory messages and translations, against a model that keeps a list of regions and nothing else.

#![no_main]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use memory::{Area, Epochs, GuestAddr, MemoryMap, MemoryTable, MemoryView, RegionConfig, UserAddr};
use vhostd_fuzz::input::Input;

const PAGE: u64 = 4096;
const FILE_PAGES: u64 = 8;
const FILES: usize = 3;

thread_local! {
    /// Sealed memfds in which every page begins with a word of its own.
    static FILES_BY_TAG: Vec<OwnedFd> = (0..FILES as u64).map(patterned).collect();
}

fn patterned(tag: u64) -> OwnedFd {
    let (area, fd) = Area::shared((FILE_PAGES * PAGE) as usize, "fuzz").expect("memfd");
    for page in 0..FILE_PAGES {
        area.write((page * PAGE) as usize, pattern(tag, page * PAGE));
    }
    fd
}

fn pattern(tag: u64, offset: u64) -> u64 {
    (tag + 1) << 48 | offset
}

/// A mapped region: what was asked for, and the file's tag.
type Mapped = (RegionConfig, u64);

/// The rules, without mappings: `Some` is the next list of regions.
fn valid(mut regions: Vec<Mapped>) -> Option<Vec<Mapped>> {
    let usable = |config: &RegionConfig| {
        let ends = |start: u64| start.checked_add(config.len);
        config.len > 0
            && [config.guest.0, config.user.0, config.mmap_offset].iter().all(|value| value % PAGE == 0)
            && ends(config.guest.0).is_some()
            && ends(config.user.0).is_some()
            && ends(config.mmap_offset).is_some_and(|end| end <= FILE_PAGES * PAGE)
    };
    regions.sort_by_key(|(config, _)| config.guest);
    let disjoint = |pair: &[Mapped]| pair[0].0.guest.0 + pair[0].0.len <= pair[1].0.guest.0;
    let fine = regions.len() <= memory::MAX_REGIONS
        && regions.iter().all(|(config, _)| usable(config))
        && regions.windows(2).all(disjoint);
    fine.then_some(regions)
}

/// Mostly sensible regions in a small space, at its bottom or at the top of the address space; sometimes anything.
fn config(input: &mut Input<'_>) -> RegionConfig {
    if input.below(8) == 0 {
        let (guest, user) = (GuestAddr(input.u64()), UserAddr(input.u64()));
        return RegionConfig { guest, len: input.u64(), user, mmap_offset: input.u64() };
    }
    let base = input.choose(&[0, 0, 1 << 47, u64::MAX - 16 * PAGE + 1]);
    let guest = base + input.below(16) as u64 * PAGE;
    let len = input.below(4) as u64 * PAGE + input.choose(&[0, 0, 0, 1, PAGE - 1]);
    let user = UserAddr((guest ^ 0x5555_0000_0000) & !(1 << 63));
    RegionConfig { guest: GuestAddr(guest), len, user, mmap_offset: input.below(9) as u64 * PAGE }
}

struct World {
    map: MemoryMap,
    model: Vec<Mapped>,
    epochs: Epochs,
    held: Vec<(memory::Epoch, Arc<MemoryTable>)>,
}

impl World {
    fn change(&mut self, input: &mut Input<'_>) {
        let generation = self.map.table().generation();
        let before = Arc::clone(self.map.table());
        let (wanted, done) = match input.below(8) {
            0 | 1 => self.set(input),
            2..5 => self.add(input),
            5 | 6 => self.remove(input),
            _ => {
                self.map.clear();
                (Some(Vec::new()), true)
            }
        };
        assert_eq!(wanted.is_some(), done, "accepted and refused by the rules");
        assert_eq!(self.map.table().generation(), generation + u64::from(done));
        if let Some(wanted) = wanted {
            self.check_kept(&before, &wanted);
            self.model = wanted;
        }
        assert!(self.map.table().regions().eq(self.model.iter().map(|(config, _)| *config)));
        self.check_contents();
        self.epochs.replace(Arc::clone(self.map.table()));
    }

    fn set(&mut self, input: &mut Input<'_>) -> (Option<Vec<Mapped>>, bool) {
        let regions: Vec<Mapped> =
            (0..input.below(6)).map(|_| (config(input), input.below(FILES) as u64)).collect();
        let sent = regions.iter().map(|(config, tag)| (*config, send(*tag))).collect();
        (valid(regions), self.map.set_table(sent).is_ok())
    }

    fn add(&mut self, input: &mut Input<'_>) -> (Option<Vec<Mapped>>, bool) {
        let added = (config(input), input.below(FILES) as u64);
        if self.model.contains(&added) {
            // What is there already changes nothing.
            let table = Arc::clone(self.map.table());
            let same = self.map.add(added.0, send(added.1)).is_ok_and(|now| Arc::ptr_eq(&now, &table));
            assert!(same, "a region that was added again");
            return (None, false);
        }
        let regions = self.model.iter().copied().chain([added]).collect();
        (valid(regions), self.map.add(added.0, send(added.1)).is_ok())
    }

    fn remove(&mut self, input: &mut Input<'_>) -> (Option<Vec<Mapped>>, bool) {
        let named = match self.model.get(input.below(8)) {
            Some((present, _)) => RegionConfig { mmap_offset: input.u64(), ..*present },
            None => config(input),
        };
        let key = |config: &RegionConfig| (config.guest, config.len, config.user);
        let regions: Vec<Mapped> =
            self.model.iter().copied().filter(|(config, _)| key(config) != key(&named)).collect();
        let found = regions.len() < self.model.len();
        (found.then_some(regions), self.map.remove(&named).is_ok())
    }

    /// Regions that were there before are where they were.
    fn check_kept(&self, before: &MemoryTable, wanted: &[Mapped]) {
        for kept in wanted.iter().filter(|region| self.model.contains(region)) {
            let at =
                |table: &MemoryTable| table.slice(kept.0.guest, 1).expect("a mapped region").range().base;
            assert_eq!(at(before), at(self.map.table()));
        }
    }

    /// Every page shows its part of the right file.
    fn check_contents(&self) {
        for (config, tag) in &self.model {
            for offset in (0..config.len).step_by(PAGE as usize).filter(|offset| config.len - offset >= 8) {
                let slice =
                    self.map.table().slice(GuestAddr(config.guest.0 + offset), 8).expect("a mapped page");
                assert_eq!(slice.read_obj(0), Some(pattern(*tag, config.mmap_offset + offset)));
            }
        }
    }

    fn translate(&self, input: &mut Input<'_>) {
        let addr = match self.model.get(input.below(8)) {
            Some((config, _)) => config.guest.0.wrapping_add(config.len * input.below(2) as u64),
            None => input.u64(),
        };
        let addr = addr.wrapping_add(input.u16() as i16 as u64);
        let len = if input.below(8) == 0 { input.u64() } else { u64::from(input.u16()) };
        self.check_slice(self.epochs.view(), addr, len);
        self.check_pieces(self.epochs.view(), addr, len);
    }

    fn check_slice(&self, view: &MemoryView, addr: u64, len: u64) {
        let home = self.home(addr);
        let expected = home.is_some_and(|(config, _)| len <= config.len - (addr - config.guest.0));
        let (guest, size) = (GuestAddr(addr), len as usize);
        assert_eq!(view.slice(guest, size).is_ok(), expected);
        assert_eq!(view.table().slice(guest, size).is_ok(), expected);
        assert_eq!(view.area(guest, size).is_ok(), expected);
        let Ok(slice) = view.slice(guest, size) else { return };
        assert_eq!(view.guest_of(slice.range()), Some(guest));
        let again = view.reenter(slice.range()).expect("the same range");
        assert_eq!(again.range(), slice.range());
        // Under the sanitizer a wrong pointer ends here.
        let mut bytes = vec![0; size];
        slice.read(0, &mut bytes);
    }

    fn check_pieces(&self, view: &MemoryView, addr: u64, len: u64) {
        let mut end = addr;
        let result = view.pieces(GuestAddr(addr), len as usize, |piece| {
            assert_eq!(view.guest_of(piece.range()), Some(GuestAddr(end)));
            end += piece.len() as u64;
        });
        assert_eq!(result.is_ok(), self.covered(addr, len));
        assert!(result.is_err() || end - addr == len);
    }

    fn home(&self, addr: u64) -> Option<&Mapped> {
        self.model.iter().find(|(config, _)| addr >= config.guest.0 && addr - config.guest.0 < config.len)
    }

    fn covered(&self, mut addr: u64, mut len: u64) -> bool {
        loop {
            let Some((config, _)) = self.home(addr) else { return false };
            let room = config.len - (addr - config.guest.0);
            if len <= room {
                return true;
            }
            len -= room;
            addr += room;
        }
    }

    fn hold(&mut self, input: &mut Input<'_>) {
        if input.flag() {
            self.held.push((self.epochs.enter(), Arc::clone(self.map.table())));
        } else if !self.held.is_empty() {
            let (epoch, table) = self.held.swap_remove(input.below(self.held.len()));
            assert!(Arc::ptr_eq(self.epochs.view_of(epoch).table(), &table));
            self.epochs.leave(epoch);
        }
        assert_eq!(self.epochs.in_flight() as usize, self.held.len());
    }
}

fn send(tag: u64) -> OwnedFd {
    FILES_BY_TAG
        .with(|files| files[tag as usize].as_fd().try_clone_to_owned().expect("a duplicate descriptor"))
}

/// Descriptors of this process.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let map = MemoryMap::new();
    let epochs = Epochs::new(Arc::clone(map.table()));
    let mut world = World { map, model: Vec::new(), epochs, held: Vec::new() };
    send(0);
    let open = open_descriptors();
    while !input.is_empty() {
        match input.below(8) {
            0..3 => world.change(&mut input),
            3..6 => world.translate(&mut input),
            _ => world.hold(&mut input),
        }
    }
    assert_eq!(open_descriptors(), open, "a message left a descriptor open");
});
