//! The daemon's engines without the daemon.

use anyhow::{Context, Result, bail};
use compress_offload::algorithm::{Op, Params};
use compress_offload::checksum;
use compress_offload::engine::{Choice, Engines, Outcome, Verify};

use super::algorithm::Operation;
use super::alone::Answer;
use super::options::Load;

/// Engines of one worker, and the one request that they are given.
pub(super) struct Ours {
    engines: Engines,
    choice: Choice,
    operation: Operation,
    params: Params,
    verify: bool,
}

impl Ours {
    /// Those that the daemon's option `--engine` names.
    pub fn new(name: &str, load: &Load) -> Result<Self> {
        let choice: Choice = name.parse().context("The features of vhostd-bench are those of the daemon")?;
        let params = Params::new(load.format).with_level(load.level).with_checksum(load.checksum);
        let engines = Engines::new(choice, Verify::Off);
        Ok(Self { engines, choice, operation: load.op, params, verify: load.verified })
    }

    /// What it is.
    pub fn name(&self) -> String {
        format!("engine {}", self.choice.name())
    }

    /// Does one request.
    #[inline]
    pub fn run(&mut self, src: &[u8], dst: &mut [u8]) -> Result<Answer> {
        let op = match self.operation {
            Operation::Compress => Op::Compress,
            Operation::Decompress => Op::Decompress,
            Operation::Checksum => {
                let checksum = checksum::of(self.params.checksum, src);
                return Ok(Answer { produced: Some(0), checksum });
            }
        };
        let answer = self.engines.run(op, &self.params, self.verify, src, dst.into());
        match answer.outcome {
            Outcome::Done { produced, .. } => {
                Ok(Answer { produced: Some(produced), checksum: answer.checksum })
            }
            Outcome::Incompressible => Ok(Answer::default()),
            other => bail!("The engine ended a request with {other:?}"),
        }
    }
}
