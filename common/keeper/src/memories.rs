//! Memory that outlives each worker process.

use std::fs::File;
use std::io;

use crate::config::Memory;
use crate::sys::{self, LockedMapping};

/// One memory. Only workers look into it.
pub(crate) struct Held {
    pub name: &'static str,
    pub file: File,
    len: u64,
    /// Keeps it from the swap device, as far as it was touched.
    mapping: Option<LockedMapping>,
}

impl Held {
    /// Makes the memory.
    pub fn new(memory: &Memory) -> io::Result<Self> {
        let file = sys::memfd(memory.name, memory.len)?;
        let len = usize::try_from(memory.len).map_err(io::Error::other)?;
        let mapping = memory.secret.then(|| LockedMapping::new(&file, len)).transpose()?;
        Ok(Self { name: memory.name, file, len: memory.len, mapping })
    }

    /// The worker that had it locked has died: locks what it has written.
    pub fn hold(&self) {
        let Some(mapping) = &self.mapping else { return };
        let mut at = 0;
        while at < self.len
            && let Ok(Some(from)) = sys::next_data(&self.file, at)
        {
            at = sys::next_hole(&self.file, from).ok().flatten().unwrap_or(self.len);
            if let Err(error) = mapping.lock(from, at) {
                tracing::warn!(
                    memory = self.name,
                    %error,
                    "keys may be swapped out until a worker runs again (LimitMEMLOCK=, ulimit -l)"
                );
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holding_a_memory_takes_no_more_than_was_written() {
        let held = Held::new(&Memory { name: "test", len: 1 << 30, secret: true }).unwrap();
        held.file.write_all_at(b"key", 8192).unwrap();
        held.file.write_all_at(b"key", 512 << 20).unwrap();
        held.hold();
        let taken = std::os::unix::fs::MetadataExt::blocks(&held.file.metadata().unwrap()) * 512;
        assert!(taken <= 64 << 10, "{taken} bytes");
    }

    #[test]
    fn a_memory_cannot_be_cut_off_under_the_next_worker() {
        let held = Held::new(&Memory { name: "test", len: 4096, secret: false }).unwrap();
        assert!(held.file.set_len(0).is_err() && held.file.set_len(8192).is_err());
    }
}
