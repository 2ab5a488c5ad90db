//! What is compressed: text and programs of the machine it runs on, or files, or extremes.
//!
//! The built-in corpus is made anew in each run and by a fixed recipe: files of a few folders that every Linux system has, in
//! the order of their names and then shuffled by the seed, each up to a limit; programs by their ELF header, text by what is
//! in it. Two runs with the same seed on the same machine have the same bytes, which the report names by a checksum.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::blk::access::Random;

/// Where text is looked for.
const TEXT_FOLDERS: [&str; 5] =
    ["/usr/share/common-licenses", "/usr/share/doc", "/usr/share/perl", "/usr/include", "/usr/lib/python3"];
/// Where programs are looked for.
const PROGRAM_FOLDERS: [&str; 2] = ["/usr/bin", "/usr/sbin"];
/// Text and programs take turns in pieces of this many bytes, and no file gives more than one.
const PIECE: usize = 256 << 10;
/// Smaller files are left out.
const SMALLEST: u64 = 4096;
/// Bytes by which text is told.
const SAMPLE: usize = 4096;

/// Where the data come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// Text and programs of this machine, half of each.
    Mixed,
    /// Text only.
    Text,
    /// Programs only.
    Programs,
    /// What cannot be compressed.
    Random,
    /// What can be compressed best.
    Zeros,
    /// A file, from its beginning.
    File(PathBuf),
}

impl FromStr for Corpus {
    type Err = Infallible;

    /// Whatever is no name is a path.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "mixed" => Self::Mixed,
            "text" => Self::Text,
            "programs" => Self::Programs,
            "random" => Self::Random,
            "zeros" => Self::Zeros,
            path => Self::File(path.into()),
        })
    }
}

impl fmt::Display for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed => f.write_str("mixed"),
            Self::Text => f.write_str("text"),
            Self::Programs => f.write_str("programs"),
            Self::Random => f.write_str("random"),
            Self::Zeros => f.write_str("zeros"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Corpus {
    /// Up to `size` bytes of it: fewer where there are no more.
    pub fn load(&self, size: usize, seed: u64) -> Result<Vec<u8>> {
        match self {
            Self::Mixed => local(size, seed, &[Kind::Text, Kind::Program]),
            Self::Text => local(size, seed, &[Kind::Text]),
            Self::Programs => local(size, seed, &[Kind::Program]),
            Self::Random => Ok(random(size, seed)),
            Self::Zeros => Ok(vec![0; size]),
            Self::File(path) => {
                read_up_to(path, size).with_context(|| format!("Cannot read {}", path.display()))
            }
        }
    }
}

fn random(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; size];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes()[..chunk.len()]);
    }
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Program,
}

impl Kind {
    fn is(self, head: &[u8]) -> bool {
        match self {
            Self::Program => head.starts_with(b"\x7fELF"),
            Self::Text => {
                let usual = |byte: &&u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
                !head.is_empty() && head.iter().filter(usual).count() * 100 >= head.len() * 95
            }
        }
    }

    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Text => &TEXT_FOLDERS,
            Self::Program => &PROGRAM_FOLDERS,
        }
    }
}

/// Pieces of files of these kinds in turn.
fn local(size: usize, seed: u64, kinds: &[Kind]) -> Result<Vec<u8>> {
    let share = size.div_ceil(kinds.len());
    let parts: Vec<Vec<u8>> = kinds.iter().map(|&kind| gather(kind, share, seed)).collect();
    let mut bytes = Vec::with_capacity(size);
    for piece in 0..share.div_ceil(PIECE) {
        for part in &parts {
            let rest = part.get(piece * PIECE..).unwrap_or_default();
            bytes.extend_from_slice(&rest[..rest.len().min(PIECE)]);
        }
    }
    bytes.truncate(size);
    ensure!(
        !bytes.is_empty(),
        "There is neither text nor a program in {TEXT_FOLDERS:?} and {PROGRAM_FOLDERS:?}"
    );
    Ok(bytes)
}

/// Up to `size` bytes of files of a kind.
fn gather(kind: Kind, size: usize, seed: u64) -> Vec<u8> {
    let mut files = Vec::new();
    kind.folders().iter().for_each(|folder| list(Path::new(folder), &mut files));
    // The order of a folder is that of its file system.
    files.sort();
    shuffle(&mut files, seed);
    let mut bytes = Vec::with_capacity(size);
    for path in files {
        if bytes.len() >= size {
            break;
        }
        let Ok(content) = read_up_to(&path, PIECE.min(size - bytes.len())) else { continue };
        if kind.is(&content[..content.len().min(SAMPLE)]) {
            bytes.extend_from_slice(&content);
        }
    }
    bytes
}

/// Regular files below `folder`; links are not followed.
fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), files),
            Ok(kind) if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() >= SMALLEST) => {
                files.push(entry.path());
            }
            _ => {}
        }
    }
}

fn shuffle(files: &mut [PathBuf], seed: u64) {
    let mut random = Random::new(seed);
    for last in (1..files.len()).rev() {
        files.swap(last, random.below(last as u64 + 1) as usize);
    }
}

fn read_up_to(path: &Path, size: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(size as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, size: usize, seed: u64) -> Vec<u8> {
        name.parse::<Corpus>().unwrap().load(size, seed).unwrap()
    }

    #[test]
    fn the_same_seed_has_the_same_bytes_and_another_one_has_others() {
        let one = load("mixed", 1 << 20, 1);
        assert_eq!(one.len(), 1 << 20);
        assert!(one == load("mixed", 1 << 20, 1));
        assert!(one != load("mixed", 1 << 20, 2));
    }

    #[test]
    fn text_is_text_and_programs_are_programs() {
        assert!(Kind::Text.is(&load("text", 4096, 3)));
        assert!(Kind::Program.is(&load("programs", 4096, 3)));
        assert!(!Kind::Text.is(&load("programs", 4096, 3)) && !Kind::Text.is(b""));
        assert!(!Kind::Text.is(&load("random", 4096, 3)));
    }

    #[test]
    fn a_file_is_taken_from_its_beginning_and_may_be_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, b"0123456789").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!((load(path, 4, 1), load(path, 100, 1)), (b"0123".to_vec(), b"0123456789".to_vec()));
        let missing = "/nonexistent/data".parse::<Corpus>().unwrap().load(1, 1).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/data"));
    }
}
