#![expect(unsafe_code, reason = "CPU affinity and per-process CPU clocks are system calls")]
//! Pinning of threads, and the CPU time another process has used.

use std::io;
use std::str::FromStr;
use std::time::Duration;

/// An ordered list of CPU numbers as on a command line: `0,2-3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// Why a CPU list was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no CPU list like 0,2-3 with numbers below 1024")]
pub struct BadCpuList(String);

impl FromStr for CpuList {
    type Err = BadCpuList;

    fn from_str(text: &str) -> Result<Self, BadCpuList> {
        let refuse = || BadCpuList(text.to_owned());
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| refuse())?;
            let last: usize = last.trim().parse().map_err(|_| refuse())?;
            if first > last || last >= libc::CPU_SETSIZE as usize {
                return Err(refuse());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl std::fmt::Display for CpuList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

/// Restricts the calling thread, and the processes it starts from now on, to `cpus`.
pub fn pin_current_thread(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is a valid cpu_set_t of the size passed; pid 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The CPUs the calling thread may run on, in ascending order.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is the valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and of the size passed; pid 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index tested is below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// CPU time (user and system, all threads, ended ones too) that process `pid` has used so far.
///
/// Exact to the nanosecond: the kernel adds what the running threads have used since the last tick.
pub fn process_cpu_time(pid: i32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is writable; the call only fills it in.
    let error = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    read_clock(clock)
}

/// CPU time that the calling thread has used so far.
pub fn thread_cpu_time() -> io::Result<Duration> {
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read_clock(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the whole call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Resident memory of process `pid` in bytes, from `/proc/PID/status`.
pub fn resident_bytes(pid: i32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_resident(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no VmRSS line"))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_ranges_keep_their_order() {
        assert_eq!("3,0-2".parse::<CpuList>().unwrap().0, [3, 0, 1, 2]);
        assert_eq!("5".parse::<CpuList>().unwrap().to_string(), "5");
    }

    #[test]
    fn malformed_lists_are_refused_with_their_text() {
        for text in ["", "a", "2-1", "0,,1", "1024", "-1"] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")));
        }
    }

    #[test]
    fn own_cpu_time_grows_by_what_was_burnt() {
        let pid = std::process::id() as i32;
        let before = process_cpu_time(pid).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let used = process_cpu_time(pid).unwrap() - before;
        assert!(used > Duration::from_millis(5), "30 ms of spinning counted as {used:?}");
    }

    #[test]
    fn a_pinned_thread_sees_only_its_cpu() {
        std::thread::spawn(|| {
            let first = allowed_cpus().unwrap()[0];
            pin_current_thread(&[first]).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [first]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_dead_process_has_no_cpu_time() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(process_cpu_time(child.id() as i32).is_err());
    }

    #[test]
    fn resident_size_is_read_in_bytes() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(parse_resident("Name:\tx\n"), None);
        assert!(resident_bytes(std::process::id() as i32).unwrap() > 100_000);
    }
}
