//! Memory for results that cannot go to their destination at once.

use super::{Outcome, Output};

/// A buffer that grows to the longest request and stays.
#[derive(Default)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    /// At least `len` bytes, with whatever they hold from earlier on.
    pub(super) fn get(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        &mut self.0[..len]
    }

    /// Lets `compress` write to `dst` when it has room for `bound` bytes, otherwise to the scratch, and copies what fits.
    ///
    /// Libraries want that room even where the result needs less. This way the result, and whether it fits, depend on the
    /// source alone.
    pub(super) fn compress(
        &mut self,
        bound: usize,
        mut dst: Output<'_>,
        mut compress: impl FnMut(Output<'_>) -> Outcome,
    ) -> Outcome {
        if dst.len() >= bound {
            return compress(dst);
        }
        let scratch = self.get(bound);
        match compress(Output::from(&mut *scratch)) {
            Outcome::Done { consumed, produced } if produced <= dst.len() => {
                dst.write(&scratch[..produced]);
                Outcome::Done { consumed, produced }
            }
            Outcome::Done { .. } => Outcome::Incompressible,
            other => other,
        }
    }
}
