//! Where connections come from: a socket file, a listening peer, or descriptors this process was started with.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::scm;

/// Connections that wait while one is served.
const BACKLOG: i32 = 8;
/// Longest path of a socket: `sun_path` less the final zero (unix(7)).
const MAX_PATH: usize = 107;
/// The first descriptor of socket activation (sd_listen_fds(3)).
const FIRST_ACTIVATED_FD: RawFd = 3;

/// Where to get connections from.
#[derive(Debug)]
pub enum Endpoint {
    /// Listen on this path.
    Listen(PathBuf),
    /// Connect to a front-end that listens on this path, again and again.
    Connect(PathBuf),
    /// One connection, already made.
    Fd(OwnedFd),
    /// A socket that already listens.
    Listener(OwnedFd),
    /// A `SOCK_SEQPACKET` socket over which connections are handed over, one descriptor a message.
    Handover(OwnedFd),
}

/// Why an endpoint cannot be used. Each is one sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The path does not fit a socket address.
    #[error("Socket path {} is too long: {} bytes, at most {MAX_PATH}", .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    /// Somebody listens there.
    #[error("Socket {} is in use already", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something else.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocketFile(PathBuf),
    /// The descriptor is not a Unix stream socket.
    #[error("File descriptor {0} is not a Unix stream socket")]
    NotASocket(RawFd),
    /// The descriptor is not open.
    #[error("File descriptor {0} is not open")]
    NotOpen(RawFd),
    /// The system said no.
    #[error("Cannot {action} socket {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// An endpoint that is ready to give connections. Dropping it removes the socket file it made.
#[derive(Debug)]
pub struct Transport(pub(crate) Source);

impl Transport {
    /// The listening socket and the file it has, if we made one, for something other than [`serve`](crate::serve). Gives
    /// the transport back if it does not listen. The socket does not block.
    pub fn into_listener(self) -> Result<(UnixListener, Option<SocketFile>), Self> {
        match self.0 {
            Source::Listener(socket, file) => Ok((UnixListener::from(socket), file)),
            other => Err(Self(other)),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Source {
    /// A listening, non-blocking socket; the file is there if we made it.
    Listener(OwnedFd, Option<SocketFile>),
    Connect(PathBuf),
    Single(OwnedFd),
    Handover(OwnedFd),
}

impl Endpoint {
    /// Binds and listens, or checks what was handed over. `mode` is that of a new socket file, usually `0o660`.
    pub fn open(self, mode: u32) -> Result<Transport, EndpointError> {
        Ok(Transport(match self {
            Self::Listen(path) => {
                let (socket, file) = bind(path, mode)?;
                Source::Listener(socket, Some(file))
            }
            Self::Connect(path) => {
                check_length(&path)?;
                Source::Connect(path)
            }
            Self::Fd(fd) => Source::Single(fd),
            Self::Listener(fd) => {
                let named =
                    |source| EndpointError::Io { action: "use inherited", path: PathBuf::new(), source };
                scm::set_nonblocking(fd.as_fd()).map_err(named)?;
                Source::Listener(fd, None)
            }
            Self::Handover(fd) => Source::Handover(fd),
        }))
    }
}

/// A descriptor this process was started with (`--fd`): a connection, a socket that listens, or one over which connections
/// are handed over.
pub fn inherited(fd: RawFd) -> Result<Endpoint, EndpointError> {
    let socket = scm::inherit(fd).map_err(|_| EndpointError::NotOpen(fd))?;
    let option =
        |option| scm::socket_option(socket.as_fd(), option).map_err(|_| EndpointError::NotASocket(fd));
    if option(libc::SO_DOMAIN)? != libc::AF_UNIX {
        return Err(EndpointError::NotASocket(fd));
    }
    match (option(libc::SO_TYPE)?, option(libc::SO_ACCEPTCONN)? != 0) {
        (libc::SOCK_STREAM, true) => Ok(Endpoint::Listener(socket)),
        (libc::SOCK_STREAM, false) => Ok(Endpoint::Fd(socket)),
        (libc::SOCK_SEQPACKET, false) => Ok(Endpoint::Handover(socket)),
        _ => Err(EndpointError::NotASocket(fd)),
    }
}

/// Takes the next connection from a socket of [`Endpoint::Handover`]: `None` once the other end is closed. Waits for nothing.
pub(crate) fn handed_over(channel: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut fds = Vec::new();
    let received = scm::receive(channel, &mut [0], &mut fds)?;
    match fds.pop() {
        None if received.len == 0 => Ok(None),
        None => Err(io::ErrorKind::WouldBlock.into()),
        some => Ok(some),
    }
}

/// The endpoints of systemd socket activation, each with its name (`FileDescriptorName=`); none if there are none for this
/// process (sd_listen_fds(3)). To be called once, early.
pub fn activated() -> Result<Vec<(String, Endpoint)>, EndpointError> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0);
    activated_fds(count, &std::env::var("LISTEN_FDNAMES").unwrap_or_default())
}

fn activated_fds(count: u32, names: &str) -> Result<Vec<(String, Endpoint)>, EndpointError> {
    let mut names = names.split(':');
    (FIRST_ACTIVATED_FD..)
        .take(count as usize)
        .map(|fd| Ok((names.next().unwrap_or_default().to_owned(), inherited(fd)?)))
        .collect()
}

/// One attempt to connect.
pub(crate) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = scm::unix_socket(false)?;
    scm::with_address(socket.as_fd(), path.as_os_str().as_bytes(), libc::connect)?;
    Ok(socket)
}

/// A socket file we made. It is removed in the end, unless somebody has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Failing is harmless: the next start finds a stale socket and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn check_length(path: &Path) -> Result<(), EndpointError> {
    if path.as_os_str().len() > MAX_PATH { Err(EndpointError::PathTooLong(path.into())) } else { Ok(()) }
}

fn bind(path: PathBuf, mode: u32) -> Result<(OwnedFd, SocketFile), EndpointError> {
    check_length(&path)?;
    remove_stale(&path)?;
    let failed = |action| {
        let path = path.clone();
        move |source| EndpointError::Io { action, path, source }
    };
    let socket = scm::unix_socket(true).map_err(failed("create"))?;
    scm::set_mode_before_bind(socket.as_fd(), mode).map_err(failed("restrict"))?;
    scm::with_address(socket.as_fd(), path.as_os_str().as_bytes(), libc::bind).map_err(failed("bind"))?;
    let file = SocketFile { identity: identity(&path).map_err(failed("find"))?, path: path.clone() };
    // The umask may have taken away what was asked for.
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
    scm::listen(socket.as_fd(), BACKLOG).map_err(failed("listen on"))?;
    Ok((socket, file))
}

/// Removes a socket file on which nobody listens any more.
fn remove_stale(path: &Path) -> Result<(), EndpointError> {
    let failed = |action| move |source| EndpointError::Io { action, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("find")(e)),
        Ok(file) if !file.file_type().is_socket() => return Err(EndpointError::NotASocketFile(path.into())),
        Ok(_) => {}
    }
    // Not blocking: a full backlog is an answer, too.
    let probe = scm::unix_socket(true).map_err(failed("create"))?;
    match scm::with_address(probe.as_fd(), path.as_os_str().as_bytes(), libc::connect) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove stale"))
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(failed("probe")(e)),
        _ => Err(EndpointError::InUse(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_socket_has_the_mode_asked_for_and_is_removed_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let transport = Endpoint::Listen(path.clone()).open(0o660).unwrap();
        assert_eq!(mode(&path), 0o660);
        UnixStream::connect(&path).unwrap();
        drop(transport);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _transport = Endpoint::Listen(path.clone()).open(0o600).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _other = UnixListener::bind(&path).unwrap();
        let error = Endpoint::Listen(path.clone()).open(0o660).unwrap_err();
        assert!(matches!(error, EndpointError::InUse(_)), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_regular_file_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = Endpoint::Listen(path.clone()).open(0o660).unwrap_err();
        assert!(matches!(error, EndpointError::NotASocketFile(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_that_is_too_long_is_named_with_its_length() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        for endpoint in [Endpoint::Listen(path.clone()), Endpoint::Connect(path.clone())] {
            let error = endpoint.open(0o660).unwrap_err().to_string();
            assert!(error.contains("125 bytes, at most 107"), "{error}");
        }
    }

    #[test]
    fn the_longest_path_allowed_works() {
        let dir = tempfile::tempdir().unwrap();
        let room = MAX_PATH - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(room));
        let _transport = Endpoint::Listen(path.clone()).open(0o660).unwrap();
        connect(&path).unwrap();
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_path() {
        let error = Endpoint::Listen("/nonexistent/dir/s".into()).open(0o660).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/dir/s"), "{error}");
    }

    #[test]
    fn a_socket_that_replaced_ours_survives_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let ours = Endpoint::Listen(path.clone()).open(0o660).unwrap();
        // Kept open, so that the inode cannot be used again.
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn inherited_sockets_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (stream, _peer) = UnixStream::pair().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        let dup = |fd: &dyn AsRawFd| {
            let borrowed = fd.as_raw_fd();
            let copy = scm::duplicate(borrowed).unwrap();
            std::os::fd::IntoRawFd::into_raw_fd(copy)
        };
        assert!(matches!(inherited(dup(&listener)), Ok(Endpoint::Listener(_))));
        assert!(matches!(inherited(dup(&stream)), Ok(Endpoint::Fd(_))));
        let handover = scm::pair(libc::SOCK_SEQPACKET).unwrap().0;
        assert!(matches!(inherited(dup(&handover)), Ok(Endpoint::Handover(_))));
        assert!(matches!(inherited(dup(&file)), Err(EndpointError::NotASocket(_))));
        assert!(matches!(inherited(100_000), Err(EndpointError::NotOpen(100_000))));
    }

    #[test]
    fn connections_are_handed_over_until_the_other_end_closes() {
        let (ours, theirs) = scm::pair(libc::SOCK_SEQPACKET).unwrap();
        assert_eq!(handed_over(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (stream, mut peer) = UnixStream::pair().unwrap();
        scm::send(theirs.as_fd(), &[0], &[stream.as_fd()]).unwrap();
        scm::send(theirs.as_fd(), &[0], &[]).unwrap();
        drop((stream, theirs));
        let taken = handed_over(ours.as_fd()).unwrap().unwrap();
        io::Write::write_all(&mut UnixStream::from(taken), b"x").unwrap();
        io::Read::read_exact(&mut peer, &mut [0]).unwrap();
        assert_eq!(handed_over(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(handed_over(ours.as_fd()).unwrap().is_none());
    }
}
