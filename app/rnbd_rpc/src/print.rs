//! How answers are shown.

use anyhow::Result;
use rnbd_console::text::{harmless, print_lines};
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
