//! Where threads run: CPU lists, pinning, and what kinds of cores the host has.
#![expect(unsafe_code, reason = "sched_setaffinity and friends are C functions over a plain bit set")]

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io, mem};

/// A CPU list that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCpuList {
    /// An item is neither a number nor a range.
    #[error("CPU list {list:?}: {item:?} is not a CPU number or a range such as 0-3")]
    Item {
        /// The whole text.
        list: String,
        /// The part that is wrong.
        item: String,
    },
    /// A range runs backwards.
    #[error("CPU list: range {first}-{last} runs backwards")]
    Backwards {
        /// First number as written.
        first: usize,
        /// Second number as written.
        last: usize,
    },
    /// A number beyond what the kernel's set can hold.
    #[error("CPU list: CPU {0} is beyond the largest possible, {max}", max = MAX_CPUS - 1)]
    TooLarge(usize),
}

/// CPUs a `cpu_set_t` can name.
pub const MAX_CPUS: usize = libc::CPU_SETSIZE as usize;

/// Parses the kernel's list format, `0-3,8`: sorted, each CPU once. The empty text is the empty list.
pub fn parse_list(list: &str) -> Result<Vec<usize>, BadCpuList> {
    let mut cpus = BTreeSet::new();
    for item in list.trim().split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let number = |text: &str| {
            let bad = || BadCpuList::Item { list: list.to_owned(), item: item.to_owned() };
            let cpu = text.parse::<usize>().map_err(|_| bad())?;
            if cpu < MAX_CPUS { Ok(cpu) } else { Err(BadCpuList::TooLarge(cpu)) }
        };
        let (first, last) = match item.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(item)?, number(item)?),
        };
        if first > last {
            return Err(BadCpuList::Backwards { first, last });
        }
        cpus.extend(first..=last);
    }
    Ok(cpus.into_iter().collect())
}

/// A set of CPUs a thread may run on.
#[derive(Clone, Copy)]
pub struct Affinity(libc::cpu_set_t);

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.cpus()).finish()
    }
}

impl Affinity {
    /// Exactly these CPUs; numbers beyond [`MAX_CPUS`] are left out.
    pub fn of(cpus: impl IntoIterator<Item = usize>) -> Self {
        // SAFETY: `cpu_set_t` is a plain array of integers; all zeros is the empty set.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        for cpu in cpus.into_iter().filter(|&cpu| cpu < MAX_CPUS) {
            // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        Self(set)
    }

    /// What the calling thread may use now.
    pub fn current() -> io::Result<Self> {
        let mut set = Self::of([]);
        // SAFETY: the pointer and the size describe `set.0`; pid 0 is the calling thread.
        let r = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set.0) };
        if r == 0 { Ok(set) } else { Err(io::Error::last_os_error()) }
    }

    /// Restricts the calling thread to this set.
    pub fn apply(&self) -> io::Result<()> {
        // SAFETY: the pointer and the size describe `self.0`; pid 0 is the calling thread.
        let r = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
        if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The CPUs in the set, in order.
    pub fn cpus(&self) -> impl Iterator<Item = usize> {
        let set = self.0;
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
        (0..MAX_CPUS).filter(move |&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
    }
}

/// Pins the calling thread to one CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= MAX_CPUS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Affinity::of([cpu]).apply()
}

/// The CPUs this process may use: online, and in its affinity mask.
pub fn available() -> io::Result<Vec<usize>> {
    let allowed = Affinity::current()?;
    let online = online_in(Path::new("/sys"));
    Ok(allowed.cpus().filter(|cpu| online.is_empty() || online.contains(cpu)).collect())
}

/// The online CPUs by the `sysfs` tree at `root`; empty when it does not say.
fn online_in(root: &Path) -> Vec<usize> {
    read_list(&root.join("devices/system/cpu/online"))
}

fn read_list(path: &Path) -> Vec<usize> {
    fs::read_to_string(path).ok().and_then(|list| parse_list(&list).ok()).unwrap_or_default()
}

/// How strong a core is among the cores of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CoreClass {
    /// Made for low power (Arm little, Intel Atom cores of a hybrid part).
    Efficient,
    /// As fast as any here; every core of an ordinary machine.
    Performance,
}

/// The class of each CPU in `cpus`, by what the kernel tells.
pub fn classes(cpus: &[usize]) -> Vec<(usize, CoreClass)> {
    classes_in(Path::new("/sys"), cpus)
}

fn classes_in(root: &Path, cpus: &[usize]) -> Vec<(usize, CoreClass)> {
    // Intel hybrid parts list their Atom cores as a PMU of its own.
    let atoms = read_list(&root.join("devices/cpu_atom/cpus"));
    let capacity = |cpu: usize| -> Option<u32> {
        let path = root.join(format!("devices/system/cpu/cpu{cpu}/cpu_capacity"));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let strongest = cpus.iter().filter_map(|&cpu| capacity(cpu)).max();
    // Big cores of one part differ a little (boost bins); little ones have half of it or less.
    let weak = |cpu| capacity(cpu).zip(strongest).is_some_and(|(own, top)| own * 4 < top * 3);
    let class =
        |cpu| if atoms.contains(&cpu) || weak(cpu) { CoreClass::Efficient } else { CoreClass::Performance };
    cpus.iter().map(|&cpu| (cpu, class(cpu))).collect()
}

/// Involuntary context switches of the calling thread so far.
pub fn involuntary_switches() -> u64 {
    // SAFETY: `rusage` is plain integers, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    usage.ru_nivcsw.try_into().unwrap_or(0)
}

/// The monotonic clock in nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The processor's time stamp counter; where there is none that a program may read, nanoseconds.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    monotonic_ns()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_parse_like_the_kernels() {
        assert_eq!(parse_list("0-3,8\n"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list(" 5 , 1, 1-2 "), Ok(vec![1, 2, 5]));
        assert_eq!(parse_list(""), Ok(vec![]));
    }

    #[test]
    fn wrong_lists_say_what_is_wrong() {
        let error = parse_list("0,x").unwrap_err().to_string();
        assert!(error.contains("\"x\""), "{error}");
        assert_eq!(parse_list("3-1"), Err(BadCpuList::Backwards { first: 3, last: 1 }));
        assert_eq!(parse_list("0-99999999999"), Err(BadCpuList::TooLarge(99_999_999_999)));
        for bad in ["-1", "1-", "1-2-3", "0x1"] {
            assert!(matches!(parse_list(bad), Err(BadCpuList::Item { .. })), "{bad}");
        }
    }

    #[test]
    fn pinning_holds_and_can_be_undone() {
        std::thread::spawn(|| {
            let before = Affinity::current().unwrap();
            let cpu = before.cpus().last().unwrap();
            pin(cpu).unwrap();
            assert_eq!(Affinity::current().unwrap().cpus().collect::<Vec<_>>(), [cpu]);
            before.apply().unwrap();
            assert!(Affinity::current().unwrap().cpus().eq(before.cpus()));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn pinning_to_a_cpu_that_cannot_exist_is_an_error() {
        assert!(pin(MAX_CPUS).is_err());
        assert!(pin(MAX_CPUS - 1).is_err());
    }

    #[test]
    fn there_is_a_cpu_to_run_on() {
        assert!(!available().unwrap().is_empty());
    }

    #[test]
    fn weaker_cores_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("devices/system/cpu/cpu0/cpu_capacity", "1024\n");
        write("devices/system/cpu/cpu1/cpu_capacity", "980\n");
        write("devices/system/cpu/cpu2/cpu_capacity", "446\n");
        write("devices/cpu_atom/cpus", "3-4\n");
        use CoreClass::{Efficient, Performance};
        assert_eq!(
            classes_in(root.path(), &[0, 1, 2, 3, 9]),
            [(0, Performance), (1, Performance), (2, Efficient), (3, Efficient), (9, Performance)]
        );
    }

    #[test]
    fn time_does_not_run_backwards() {
        let before = monotonic_ns();
        assert!(monotonic_ns() >= before && before > 0);
    }
}
