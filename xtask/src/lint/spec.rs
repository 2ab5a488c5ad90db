//! SPEC.md: every promise has a number and names tests that exist.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Checks the numbering, and that every `path::test` is a test function of that file.
pub fn check() -> Result<()> {
    let root = workspace::root();
    let text = fs::read_to_string(root.join("SPEC.md")).context("Cannot read SPEC.md")?;
    let promises = parse(&text)?;
    let complaints: Vec<String> = promises.iter().flat_map(|promise| promise.complaints(root)).collect();
    if !complaints.is_empty() {
        bail!("SPEC.md:\n{}", complaints.join("\n"));
    }
    println!("      {} promises", promises.len());
    Ok(())
}

/// One numbered promise and the tests that hold it.
#[derive(Debug)]
struct Promise {
    number: String,
    tests: Vec<(String, String)>,
}

impl Promise {
    fn complaints(&self, root: &Path) -> Vec<String> {
        if self.tests.is_empty() {
            return vec![format!("{}: names no test", self.number)];
        }
        let broken = self.tests.iter().filter(|(file, test)| !has_test(&root.join(file), test));
        broken.map(|(file, test)| format!("{}: no test `{test}` in {file}", self.number)).collect()
    }
}

/// A promise starts at `- **2.3** ` and goes on to the next one or to the next heading. Within a section the numbers
/// count up from 1.
fn parse(text: &str) -> Result<Vec<Promise>> {
    let mut promises: Vec<Promise> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("- **") {
            let (number, _) = rest.split_once("**").with_context(|| format!("No number in: {line}"))?;
            if let Some(previous) = promises.last() {
                follows(&previous.number, number)?;
            }
            promises.push(Promise { number: number.to_owned(), tests: Vec::new() });
            inside = true;
        } else if line.starts_with('#') {
            inside = false;
        }
        if let Some(promise) = promises.last_mut().filter(|_| inside) {
            promise.tests.extend(tests_in(line));
        }
    }
    Ok(promises)
}

fn follows(previous: &str, number: &str) -> Result<()> {
    let (was, is) = (pair(previous)?, pair(number)?);
    if is != (was.0, was.1 + 1) && is != (was.0 + 1, 1) {
        bail!("Promise {number} does not follow {previous}");
    }
    Ok(())
}

fn pair(number: &str) -> Result<(u32, u32)> {
    let (section, promise) =
        number.split_once('.').with_context(|| format!("`{number}` is not section.number"))?;
    Ok((section.parse()?, promise.parse()?))
}

/// The `path/file.rs::test_name` code spans of a line.
fn tests_in(line: &str) -> Vec<(String, String)> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|span| span.split_once(".rs::"))
        .map(|(file, test)| (format!("{file}.rs"), test.to_owned()))
        .collect()
}

/// True when the file has a function of that name right below a test attribute (or inside `proptest!`, or a loom model).
fn has_test(file: &Path, test: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let declaration = format!("fn {test}(");
    let lines: Vec<&str> = text.lines().collect();
    let Some(at) = lines.iter().position(|line| line.trim_start().starts_with(&declaration)) else {
        return false;
    };
    lines[..at]
        .iter()
        .rev()
        .take_while(|line| line.trim_start().starts_with(['#', '/']))
        .any(|line| line.trim() == "#[test]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_collect_the_tests_of_their_lines() {
        let text = "# A\n- **1.1** One. `a/b.rs::x`,\n  `c.rs::y` and `code`\n- **1.2** Two.\n## B\n`d.rs::z`\n- **2.1** T `e.rs::w`\n";
        let promises = parse(text).unwrap();
        let tests: Vec<usize> = promises.iter().map(|promise| promise.tests.len()).collect();
        assert_eq!(tests, [2, 0, 1]);
        assert_eq!(promises[0].tests[0], ("a/b.rs".to_owned(), "x".to_owned()));
        assert!(promises[1].complaints(Path::new("/"))[0].contains("names no test"));
    }

    #[test]
    fn a_gap_in_the_numbers_is_refused() {
        assert!(parse("- **1.1** a\n- **1.3** b\n").is_err());
        assert!(parse("- **1.1** a\n- **3.1** b\n").is_err());
        assert!(parse("- **1** a\n- **2** b\n").is_err());
    }

    #[test]
    fn a_function_that_is_no_test_does_not_hold_a_promise() {
        let this = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lint/spec.rs");
        assert!(has_test(&this, "a_gap_in_the_numbers_is_refused"));
        assert!(!has_test(&this, "follows"));
        assert!(!has_test(&this, "there_is_no_such_function"));
    }
}
