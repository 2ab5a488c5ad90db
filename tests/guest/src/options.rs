//! `name=value` arguments.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// What is tested, and against what.
#[derive(Clone)]
pub struct Drivers {
    /// The driver under test.
    pub tested: String,
    /// A driver that is right.
    pub oracle: String,
}

/// The arguments that have not been asked for yet.
pub struct Options(BTreeMap<String, String>);

impl Options {
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut values = BTreeMap::new();
        for arg in args {
            let (name, value) = arg.split_once('=').with_context(|| format!("`{arg}` is not NAME=VALUE"))?;
            if values.insert(name.to_owned(), value.to_owned()).is_some() {
                bail!("`{name}` is given twice");
            }
        }
        Ok(Self(values))
    }

    /// The value of `name`, if it is given.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => {
                text.parse().ok().with_context(|| format!("`{name}={text}` is not a number it takes"))
            }
        }
    }

    pub fn drivers(&mut self) -> Drivers {
        Drivers {
            tested: self.text("driver").unwrap_or_else(|| "virtio_crypto_aes_cbc".to_owned()),
            oracle: self.text("oracle").unwrap_or_else(|| "cbc(aes-generic)".to_owned()),
        }
    }

    /// Lengths, and ranges of lengths: `16,64-1024/16`.
    pub fn sizes(&mut self, default: &str) -> Result<Vec<usize>> {
        let text = self.text("sizes").unwrap_or_else(|| default.to_owned());
        let mut sizes = Vec::new();
        for item in text.split(',') {
            let wrong = || format!("`{item}` is neither a size nor FIRST-LAST/STEP");
            match item.split_once('-') {
                None => sizes.push(item.parse().with_context(wrong)?),
                Some((first, rest)) => {
                    let (last, step) = rest.split_once('/').with_context(wrong)?;
                    let last: usize = last.parse().with_context(wrong)?;
                    let step: usize = step.parse().with_context(wrong)?;
                    sizes.extend((first.parse().with_context(wrong)?..=last).step_by(step.max(1)));
                }
            }
        }
        Ok(sizes)
    }

    /// An error that names what nobody has asked for.
    pub fn finish(&self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => bail!("There is no option `{name}` here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        Options::parse(text.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn sizes_are_single_ones_and_ranges() {
        assert_eq!(options("sizes=16,32-64/16,4096").sizes("").unwrap(), [16, 32, 48, 64, 4096]);
        assert_eq!(options("").sizes("7").unwrap(), [7]);
        assert!(options("sizes=16-32").sizes("").is_err());
    }

    #[test]
    fn an_option_that_nobody_asks_for_is_an_error() {
        let mut options = options("jobs=4 job=5");
        assert_eq!(options.number("jobs", 1).unwrap(), 4);
        assert!(options.finish().unwrap_err().to_string().contains("`job`"));
    }
}
