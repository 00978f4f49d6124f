//! How answers are shown.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};
use serde_json::Value;

/// Who reads the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A person: names are bare, mere success is silent, objects have a line for each member.
    Person,
    /// A script: always JSON, always one line.
    Json,
}

impl Form {
    pub(crate) fn of(json: bool) -> Self {
        match json {
            true => Self::Json,
            false => Self::Person,
        }
    }
}

/// Prints what a method answered.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn print_result(result: &Value, form: Form) -> Result<()> {
    match (form, result) {
        (Form::Person, Value::Bool(true)) => Ok(()),
        (Form::Person, Value::String(text)) => print_lines(&harmless(text)),
        (Form::Person, result) => print_lines(&format!("{result:#}")),
        (Form::Json, result) => print_lines(&result.to_string()),
    }
}

/// Prints a text and, where it has none, the newline at its end.
///
/// # Errors
/// If standard output cannot be written. That nobody reads it any more is no error.
pub(crate) fn print_lines(text: &str) -> Result<()> {
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
pub(crate) fn harmless(text: &str) -> String {
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
