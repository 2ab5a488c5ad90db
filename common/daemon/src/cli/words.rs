//! Words for other programs' command lines.

use std::path::Path;

/// A path as the value of one of QEMU's `KEY=VALUE,...` options: absolute, since QEMU may run elsewhere, and with each
/// comma written twice.
pub fn qemu_path(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.display().to_string().replace(',', ",,")
}

/// One word for a shell, quoted if need be.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
