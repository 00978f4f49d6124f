//! Text on standard output.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// Prints a text and, where it has none, the newline at its end.
///
/// # Errors
/// If standard output cannot be written. That nobody reads it any more is no error.
pub fn print_lines(text: &str) -> Result<()> {
    match write_lines(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
    }
}

fn write_lines(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()
}

/// A text without what a terminal would obey: the other side of a connection chooses some names.
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char.is_control() {
            true => shown.extend(char.escape_default()),
            false => shown.push(char),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}c\n"), "a\\u{1b}[2Jb\\u{9b}c\\n");
        assert_eq!(harmless("Größe"), "Größe");
    }
}
