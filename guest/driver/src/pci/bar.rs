//! The memories of a device, mapped.

use std::fs::{self, OpenOptions};

use memory::Area;

use super::capability::Place;
use super::{Found, PciError, at};

/// Maps the structure at `place`. Its accessors are volatile and as wide as what they access.
pub fn map(found: &Found, place: Place) -> Result<Area, PciError> {
    let outside = || PciError::OutOfRange(found.address());
    let (offset, len) = (place.offset as usize, place.len as usize);
    let size = size(found, place.bar)?;
    let end = offset.checked_add(len).filter(|&end| end <= size && len > 0).ok_or_else(outside)?;
    let path = found.file(&format!("resource{}", place.bar));
    let file = at("open", &path, OpenOptions::new().read(true).write(true).open(&path))?;
    // From its start: the kernel maps whole pages of it.
    let whole = at("map", &path, Area::map(&file, end, 0))?;
    whole.sub(offset, len).ok_or_else(outside)
}

/// Bytes of a memory, by the line of `resource` that tells its first and its last address.
fn size(found: &Found, bar: u8) -> Result<usize, PciError> {
    let path = found.file("resource");
    let text = at("read", &path, fs::read_to_string(&path))?;
    let strange = || PciError::Strange(path.clone());
    let line = text.lines().nth(bar.into()).ok_or_else(strange)?;
    let mut numbers =
        line.split_whitespace().map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
    let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else { return Err(strange()) };
    match last.checked_sub(first) {
        Some(span) if last > 0 => Ok(span as usize + 1),
        // An unused line is all zeros.
        _ => Err(PciError::Missing { device: found.address(), what: "memory that its capabilities name" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_mapped_if_it_lies_inside_of_its_memory() {
        let dir = tempfile::tempdir().unwrap();
        let lines = ["0x0 0x0 0x0", "0x00000000febf0000 0x00000000febf1fff 0x0000000000040200"];
        fs::write(dir.path().join("resource"), lines.join("\n")).unwrap();
        fs::write(dir.path().join("resource1"), [[0; 0x1000], [5; 0x1000]].concat()).unwrap();
        let found = Found { path: dir.path().into(), id: 63 };
        let area = map(&found, Place { bar: 1, offset: 0x1000, len: 56 }).unwrap();
        assert_eq!((area.len(), area.read::<u8>(55)), (56, 5));
        for (bar, offset, len) in [(1, 0x1000, 0x1001), (1, u32::MAX, 2), (1, 0, 0), (0, 0, 1), (5, 0, 1)] {
            assert!(map(&found, Place { bar, offset, len }).is_err(), "{bar} {offset} {len}");
        }
    }
}
