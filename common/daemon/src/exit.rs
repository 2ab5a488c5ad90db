//! How a process ends: 0 done, 1 failed at run time, 2 asked for something that cannot be.

use std::fmt;

/// Exit code of a failure while running.
pub const RUNTIME: u8 = 1;
/// Exit code of a bad command line or configuration file.
pub const USAGE: u8 = 2;

/// Why a daemon does not run: always one sentence, sometimes with a hint in parentheses.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// The command line or the configuration is wrong (exit code 2).
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(USAGE, message)
    }

    /// The machine refused what a correct configuration asked for (exit code 1).
    pub fn runtime(message: impl fmt::Display) -> Self {
        Self::new(RUNTIME, message)
    }

    /// Adds what the user may do about it, shown in parentheses behind the sentence.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(one_line(&hint.to_string()));
        self
    }

    /// The exit code this failure ends the process with.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// The sentence, without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Writes it to standard error as one line, `program: sentence (hint)`.
    pub fn report(&self, program: &str) {
        eprintln!("{program}: {self}");
    }

    fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: one_line(&message.to_string()), hint: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for Failure {}

/// Whitespace of any kind becomes single spaces: a message of several lines is still one sentence.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_several_lines_become_one() {
        let failure = Failure::usage("Key 'a'\n  is unknown").hint("try\n this");
        assert_eq!(failure.message(), "Key 'a' is unknown");
        assert_eq!(failure.to_string(), "Key 'a' is unknown (try this)");
    }

    #[test]
    fn codes_tell_usage_from_runtime() {
        assert_eq!(Failure::usage("a").code(), 2);
        assert_eq!(Failure::runtime("a").code(), 1);
    }
}
