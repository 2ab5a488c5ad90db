//! One file at a time, with gzip's manners.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io::{self, IsTerminal, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use guest_driver::compress::{Client, Format};

use crate::archive::gzip::Origin;
use crate::archive::{SUFFIXES, suffix};
use crate::cli::Manners;
use crate::failure::{Failure, Trouble, plain};
use crate::pack::{Settings, Totals, pack};
use crate::progress::Progress;
use crate::unpack::unpack;

/// What is done with files.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Compressed.
    Compress {
        /// How.
        settings: Settings,
        /// Name and time are not saved.
        no_name: bool,
    },
    /// Decompressed.
    Decompress {
        /// To this format.
        format: Option<Format>,
        /// Requests in flight.
        depth: usize,
        /// To nowhere.
        test: bool,
    },
}

/// Does it to files.
pub struct Files<'a> {
    pub client: &'a mut Client,
    pub work: Work,
    pub manners: &'a Manners,
}

impl Files<'_> {
    /// Standard input to standard output.
    pub fn pipe(&mut self) -> Result<(), Trouble> {
        let (input, output) = (io::stdin(), io::stdout());
        if !self.manners.force && input.is_terminal() && matches!(self.work, Work::Decompress { .. }) {
            return Err(terminal("not read from", "decompression"));
        }
        self.spare_terminal()?;
        let progress = Progress::new("stdin", None, !self.manners.quiet && !output.is_terminal());
        let result = self.run(&Origin::default(), &mut input.lock(), &mut output.lock(), &progress);
        let said = result.map_err(|failure| Trouble::of(side(&failure, "stdin", "stdout"), &failure));
        said.and_then(|(_, garbage)| garbage_after("stdin", garbage))
    }

    /// Nobody reads compressed data on a terminal.
    fn spare_terminal(&self) -> Result<(), Trouble> {
        let compresses = matches!(self.work, Work::Compress { .. });
        if compresses && !self.manners.force && io::stdout().is_terminal() {
            return Err(terminal("not written to", "compression"));
        }
        Ok(())
    }

    /// One file.
    pub fn file(&mut self, path: &Path) -> Result<(), Trouble> {
        let name = path.display().to_string();
        let (mut input, meta) = self.open(path, &name)?;
        let quiet = self.manners.quiet || self.manners.stdout && io::stdout().is_terminal();
        let progress = Progress::new(&name, Some(meta.len()), !quiet);
        let origin = self.origin(path, &meta);
        let test = matches!(self.work, Work::Decompress { test: true, .. });
        if test || self.manners.stdout {
            if !test {
                self.spare_terminal()?;
            }
            let mut stdout = io::stdout().lock();
            let output: &mut dyn Write = if test { &mut io::sink() } else { &mut stdout };
            let result = self.run(&origin, &mut input, output, &progress);
            let (totals, garbage) =
                result.map_err(|failure| Trouble::of(side(&failure, &name, "stdout"), &failure))?;
            drop(progress);
            self.report(&name, &totals, if test { Some("OK") } else { None }, None);
            return garbage_after(&name, garbage);
        }
        let target = self.target(path, &name)?;
        self.replace(path, &name, (&mut input, &meta), &target, &origin, progress)
    }

    /// Makes the result beside the file, and removes the file.
    fn replace(
        &mut self,
        path: &Path,
        name: &str,
        (input, meta): (&mut File, &Metadata),
        target: &Path,
        origin: &Origin,
        progress: Progress,
    ) -> Result<(), Trouble> {
        let target_name = target.display().to_string();
        let mut partial = self.create(target, &target_name)?;
        let mut result = self.run(origin, input, &mut partial.file, &progress);
        if matches!(result, Err(Failure::Lost)) {
            // The history of a stream went with the device; without one, software begins again.
            let again =
                input.rewind().and_then(|()| partial.file.rewind()).and_then(|()| partial.file.set_len(0));
            again.map_err(|error| Trouble::Error(format!("{name}: {}", plain(&error))))?;
            result = self.run(origin, input, &mut partial.file, &progress);
        }
        drop(progress);
        let (totals, garbage) =
            result.map_err(|failure| Trouble::of(side(&failure, name, &target_name), &failure))?;
        let kept =
            partial.keep(meta).map_err(|error| Trouble::Error(format!("{target_name}: {}", plain(&error))));
        kept?;
        if !self.manners.keep {
            fs::remove_file(path).map_err(|error| Trouble::Error(format!("{name}: {}", plain(&error))))?;
        }
        self.report(name, &totals, None, Some(&target_name));
        garbage_after(name, garbage)
    }

    fn run(
        &mut self,
        origin: &Origin,
        input: &mut dyn io::Read,
        output: &mut dyn Write,
        progress: &Progress,
    ) -> Result<(Totals, bool), Failure> {
        match self.work {
            Work::Compress { settings, .. } => {
                pack(self.client, &settings, origin, input, output, progress).map(|totals| (totals, false))
            }
            Work::Decompress { format, depth, .. } => {
                let unpacked = unpack(self.client, format, depth, input, output, progress)?;
                Ok((unpacked.totals, unpacked.garbage))
            }
        }
    }

    /// The file, if it is one that may be replaced.
    fn open(&self, path: &Path, name: &str) -> Result<(File, Metadata), Trouble> {
        let error = |error: io::Error| Trouble::Error(format!("{name}: {}", plain(&error)));
        let replaces = !self.manners.stdout && !matches!(self.work, Work::Decompress { test: true, .. });
        let mut options = OpenOptions::new();
        options.read(true);
        if replaces && !self.manners.force {
            options.custom_flags(libc::O_NOFOLLOW);
        }
        let file = options.open(path).map_err(error)?;
        let meta = file.metadata().map_err(error)?;
        let ignored = |why: &str| Err(Trouble::Warning(format!("{name} {why} -- ignored")));
        if meta.is_dir() {
            return ignored("is a directory");
        }
        if replaces && !meta.is_file() {
            return ignored("is not a directory or a regular file");
        }
        let links = meta.nlink();
        if replaces && !self.manners.force && links > 1 {
            let word = if links == 2 { "link" } else { "links" };
            return ignored(&format!("has {} other {word}", links - 1));
        }
        Ok((file, meta))
    }

    fn origin(&self, path: &Path, meta: &Metadata) -> Origin {
        match self.work {
            Work::Compress { no_name: false, .. } => Origin {
                name: path.file_name().map(|name| name.as_bytes().to_vec()),
                mtime: u32::try_from(meta.mtime()).unwrap_or(0),
            },
            _ => Origin::default(),
        }
    }

    /// What the result is called.
    fn target(&self, path: &Path, name: &str) -> Result<PathBuf, Trouble> {
        match self.work {
            Work::Compress { settings, .. } => {
                let suffix = suffix(settings.format);
                if path.as_os_str().as_bytes().ends_with(suffix.as_bytes()) && !self.manners.force {
                    return Err(Trouble::Warning(format!("{name} already has {suffix} suffix -- unchanged")));
                }
                let mut target = path.as_os_str().to_owned();
                target.push(suffix);
                Ok(target.into())
            }
            Work::Decompress { .. } => without_suffix(path)
                .ok_or_else(|| Trouble::Warning(format!("{name}: unknown suffix -- ignored"))),
        }
    }

    /// A new file that goes away again unless it is kept.
    fn create(&self, target: &Path, name: &str) -> Result<Partial, Trouble> {
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
        let mut file = create();
        if file.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            if !self.manners.force && !overwrite(name) {
                return Err(Trouble::Warning(format!("{name} already exists; not overwritten")));
            }
            file = fs::remove_file(target).and_then(|()| create());
        }
        let file = file.map_err(|error| Trouble::Error(format!("{name}: {}", plain(&error))))?;
        Ok(Partial { path: target.to_owned(), file, kept: false })
    }

    /// What `--verbose` says.
    fn report(&self, name: &str, totals: &Totals, state: Option<&str>, target: Option<&str>) {
        if !self.manners.verbose {
            return;
        }
        let (plain, packed) = match self.work {
            Work::Compress { .. } => (totals.read, totals.written),
            Work::Decompress { .. } => (totals.written, totals.read),
        };
        let saved = if plain == 0 { 0.0 } else { 100.0 * (1.0 - packed as f64 / plain as f64) };
        let mut line = format!("{name}:\t{saved:5.1}%");
        if let Some(state) = state {
            line = format!("{name}:\t{state}");
        }
        if let Some(target) = target {
            line += &format!(" -- {} {target}", if self.manners.keep { "created" } else { "replaced with" });
        }
        eprintln!("{line}");
    }
}

/// Which of two names a failure is about.
fn side<'a>(failure: &Failure, input: &'a str, output: &'a str) -> &'a str {
    if matches!(failure, Failure::Write(_)) { output } else { input }
}

fn terminal(which: &str, what: &str) -> Trouble {
    let text = format!(
        "compressed data {which} a terminal. Use -f to force {what}.\nFor help, type: vhostd-guest --help"
    );
    Trouble::Error(text)
}

fn garbage_after(name: &str, garbage: bool) -> Result<(), Trouble> {
    if garbage {
        return Err(Trouble::Warning(format!("{name}: decompression OK, trailing garbage ignored")));
    }
    Ok(())
}

fn without_suffix(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes();
    let (stem, end) = SUFFIXES.iter().find_map(|(suffix, end)| {
        let stem = name.strip_suffix(suffix.as_bytes())?;
        (!stem.is_empty()).then_some((stem, end))
    })?;
    let target = [stem, end.as_bytes()].concat();
    Some(path.with_file_name(OsStr::from_bytes(&target)))
}

/// Asks, if there is somebody to ask.
fn overwrite(name: &str) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    eprint!("vhostd-guest: {name} already exists; do you wish to overwrite (y or n)? ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.is_ok() && answer.trim_start().to_ascii_lowercase().starts_with('y')
}

/// A result that is removed unless it is kept: after an error, and when the run is interrupted.
struct Partial {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Partial {
    /// It is complete: the file's owner, mode and times are those of what it was made of.
    fn keep(mut self, meta: &Metadata) -> io::Result<()> {
        // Only root may give files away; then nobody may use bits that were meant for the owner.
        let owned = fchown(&self.file, Some(meta.uid()), Some(meta.gid())).is_ok();
        let mode = if owned { meta.mode() & 0o7777 } else { meta.mode() & 0o777 };
        self.file.set_permissions(Permissions::from_mode(mode))?;
        let times = FileTimes::new().set_modified(meta.modified()?).set_accessed(meta.accessed()?);
        self.file.set_times(times)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_the_suffix_of_their_format() {
        let name = |path: &str| without_suffix(Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(name("dir/a.txt.gz").as_deref(), Some("dir/a.txt"));
        assert_eq!(name("a.tgz").as_deref(), Some("a.tar"));
        assert_eq!(name("a.tar.zst").as_deref(), Some("a.tar"));
        assert_eq!(name("a.lz4").as_deref(), Some("a"));
        for other in ["a", "a.txt", ".gz", "gz"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn a_result_that_is_not_kept_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let file = File::create(&path).unwrap();
        drop(Partial { path: path.clone(), file, kept: false });
        assert!(!path.exists());
        let file = File::create(&path).unwrap();
        let meta = fs::metadata("/proc/self/exe").unwrap();
        Partial { path: path.clone(), file, kept: false }.keep(&meta).unwrap();
        let kept = fs::metadata(&path).unwrap();
        assert_eq!((kept.mode() & 0o777, kept.mtime()), (meta.mode() & 0o777, meta.mtime()));
    }
}
