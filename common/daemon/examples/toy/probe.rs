//! What the sandbox tests try from inside: each probe is one thing a daemon must or must not be able to do.
#![expect(unsafe_code, reason = "probes make raw system calls to see what the kernel answers")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Tries `what` and ends the process: 0 it worked, 3 it was refused, 4 there is no such probe.
pub fn run(what: &str) -> ! {
    let (name, path) = what.split_once('=').unwrap_or((what, ""));
    let outcome = match name {
        "nothing" => Ok(()),
        "execve" => call(libc::SYS_execve, [c"/bin/true".as_ptr() as i64, 0, 0]),
        "spawn" => std::process::Command::new("/bin/true").status().map(drop),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as i64, 0, 0]),
        "kill-parent" => call(libc::SYS_kill, [i64::from(std::os::unix::process::parent_id()), 0, 0]),
        "tcp" => std::net::TcpListener::bind("127.0.0.1:0").map(drop),
        "mmap-exec" => map(libc::PROT_READ | libc::PROT_EXEC),
        "ioctl" => call(libc::SYS_ioctl, [0, 0x5412 /* TIOCSTI */, 0]),
        "setuid" => call(libc::SYS_setuid, [0, 0, 0]),
        "raise-limit" => call(libc::SYS_prlimit64, [0, 7, &[1_u64, 1] as *const _ as i64]),
        "read" => File::open(path).map(drop),
        "write" => File::options().write(true).open(path).map(drop),
        "create" => File::create_new(path).map(drop),
        "socket" => socket(Path::new(path)),
        "thread-read" => {
            std::thread::scope(|scope| scope.spawn(|| File::open(path).map(drop)).join().expect("no panic"))
        }
        "capabilities" => capabilities(),
        "work" => work(Path::new(path)),
        _ => std::process::exit(4),
    };
    match outcome {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{what}: {error}");
            std::process::exit(3);
        }
    }
}

fn call(number: i64, [a, b, c]: [i64; 3]) -> io::Result<()> {
    // SAFETY: every caller passes numbers, or a pointer to a value that lives until the call returns.
    if unsafe { libc::syscall(number, a, b, c) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn map(protection: i32) -> io::Result<()> {
    // SAFETY: a new anonymous mapping, unused afterwards.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a socket as an added device would, lets somebody connect, and removes it.
fn socket(path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let _client = UnixStream::connect(path)?;
    listener.accept()?;
    std::fs::remove_file(path)
}

/// Nothing is left: not even a file that only an override could open.
fn capabilities() -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let left =
        status.lines().find(|line| line.starts_with("CapEff:") && !line.ends_with("\t0000000000000000"));
    left.map_or(Ok(()), |line| Err(io::Error::other(line.to_owned())))
}

/// What workers do all day, through the same system calls: files, memory, threads, waiting, io_uring.
fn work(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path)?;
    file.write_all_at(b"sector", 4096)?;
    file.sync_data()?;
    file.sync_all()?;
    file.set_len(1 << 20)?;
    let mut buffer = [0; 6];
    file.read_exact_at(&mut buffer, 4096)?;
    assert_eq!(&buffer, b"sector");
    punch_hole(&file)?;
    map(libc::PROT_READ | libc::PROT_WRITE)?;
    let (area, fd) = memory::Area::shared(8192, "inflight").map_err(io::Error::other)?;
    area.store_u16(0, 7, std::sync::atomic::Ordering::Release);
    drop(fd);
    let event = vmm_sys_util::eventfd::EventFd::new(0)?;
    event.write(1)?;
    vmm_sys_util::epoll::Epoll::new()?;
    vmm_sys_util::timerfd::TimerFd::new().map_err(io::Error::from)?;
    std::thread::Builder::new()
        .name("late".into())
        .spawn(|| runtime::cpu::pin(0))?
        .join()
        .expect("no panic")?;
    runtime::cpu::involuntary_switches();
    std::thread::sleep(std::time::Duration::from_millis(1));
    uring()
}

fn punch_hole(file: &File) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, 4096) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Setting up a ring is enough: the filter sees three system calls, whatever the ring does.
fn uring() -> io::Result<()> {
    let mut params = [0_u32; 30];
    // SAFETY: `params` is 120 zero bytes, the size of io_uring_params, and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor for us.
        Ok(fd) if fd >= 0 => drop(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => {
            let error = io::Error::last_os_error();
            // A kernel or container without io_uring is no fault of the sandbox, which would say EPERM.
            return if error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}
