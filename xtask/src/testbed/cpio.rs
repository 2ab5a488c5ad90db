//! A writer of initramfs archives: the kernel's "newc" cpio format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const SYMLINK: u32 = 0o120_777;
const EXECUTABLE: u32 = 0o100_755;

/// Writes entries to `out`; parent directories are added as needed.
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
    paths: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0, paths: BTreeSet::new() }
    }

    /// Adds an executable file; a path that is there already is left as it is.
    pub fn file(&mut self, path: impl AsRef<Path>, contents: &[u8]) -> io::Result<()> {
        self.entry(path.as_ref(), EXECUTABLE, (0, 0), contents)
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        self.entry(path.as_ref(), DIRECTORY, (0, 0), &[])
    }

    /// Adds a symbolic link to `target`.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: &str) -> io::Result<()> {
        self.entry(path.as_ref(), SYMLINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn device(&mut self, path: impl AsRef<Path>, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path.as_ref(), CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Writes the trailer and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.header("TRAILER!!!", 0, (0, 0), 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), contents: &[u8]) -> io::Result<()> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path.as_os_str().is_empty() || !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.entry(parent, DIRECTORY, (0, 0), &[])?;
        }
        let length = u32::try_from(contents.len()).map_err(|_| io::Error::other("File too long for cpio"))?;
        self.header(&path.to_string_lossy(), mode, device, length)?;
        self.put(contents)?;
        self.align()
    }

    fn header(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), length: u32) -> io::Result<()> {
        self.inode += 1;
        let name_length = name.len() as u32 + 1;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}{:08x}{:08x}{major:08x}{minor:08x}{name_length:08x}{:08x}",
            self.inode, 0, 0, 1, 0, 0, 0, 0
        );
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Header with name, and contents, each end on a multiple of four bytes.
    fn align(&mut self) -> io::Result<()> {
        let gap = (4 - self.written % 4) % 4;
        self.put(&[0; 3][..gap as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_files_and_only_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/a", b"abc").unwrap();
        archive.file("/bin/b", b"").unwrap();
        archive.symlink("/sbin", "bin").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<usize> =
            ["bin\0", "bin/a\0", "bin/b\0", "sbin\0"].iter().map(|name| text.find(name).unwrap()).collect();
        assert!(names.is_sorted());
        assert_eq!(text.matches("070701").count(), 5);
    }
}
