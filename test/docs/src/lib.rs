//! Keeps the generated parts of the documentation equal to what the code says.
//!
//! A generated part of a document stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
//! The test of whoever knows what belongs there calls [`assert_generated`]; with
//! `UPDATE_GENERATED` set it writes the part anew instead of failing.

#![forbid(unsafe_code)]

mod options;

pub use options::option_tables;

use std::fs;
use std::path::Path;

/// Compares the part `name` of a document with what it should be, or makes it that.
///
/// `document` is a path from the top of the repository.
///
/// # Panics
/// If the part is not there, or is stale and not to be updated.
pub fn assert_generated(document: &str, name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(document);
    let whole = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document}: {error}"));
    let (before, part, after) =
        split(&whole, name).unwrap_or_else(|| panic!("{document} has no part {name}"));
    let expected = format!("\n{expected}\n");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        let updated = format!("{before}{expected}{after}");
        fs::write(&path, updated).unwrap_or_else(|error| panic!("{document}: {error}"));
    } else {
        assert!(
            part == expected,
            "part {name} of {document} is stale: run the test again with UPDATE_GENERATED=1"
        );
    }
}

/// What comes before a part, the part, and what comes after it; the markers are not of the part.
fn split<'a>(document: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let begin = format!("<!-- begin {name} -->\n");
    let start = document.find(&begin)? + begin.len();
    let length = document[start..].find(&format!("<!-- end {name} -->"))?;
    let (before, rest) = document.split_at(start);
    let (part, after) = rest.split_at(length);
    Some((before, part, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_stands_between_its_markers() {
        let document = "a\n<!-- begin x -->\nb\n<!-- end x -->\nc\n";
        let parts = split(document, "x").unwrap();
        assert_eq!(
            parts,
            ("a\n<!-- begin x -->\n", "b\n", "<!-- end x -->\nc\n")
        );
        assert_eq!(split(document, "y"), None);
    }
}
