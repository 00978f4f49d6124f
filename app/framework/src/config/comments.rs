/// `text` with comments (`//` to the end of the line, and `/* */`) as spaces. Everything else
/// stays where it is, so that the positions in a parser's errors are right.
pub(super) fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (taken, is_comment) = match first {
            '"' => (string_length(rest), false),
            '/' => comment_length(rest).map_or((1, false), |length| (length, true)),
            _ => (first.len_utf8(), false),
        };
        let (piece, after) = rest.split_at(taken);
        if is_comment {
            out.extend(piece.chars().map(|c| if c == '\n' { c } else { ' ' }));
        } else {
            out.push_str(piece);
        }
        rest = after;
    }
    out
}

/// Bytes of the string literal at the start of `text`, its quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of the comment at the start of `text`, if there is one.
fn comment_length(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let inside = text.strip_prefix("/*")?;
    Some(inside.find("*/").map_or(text.len(), |end| end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_become_spaces_and_lines_stay() {
        assert_eq!(blank("1 // x\n2"), "1     \n2");
        assert_eq!(blank("1 /* x\ny */ 2"), "1     \n     2");
        assert_eq!(blank("/* open"), "       ");
        assert_eq!(blank("// ü"), "    ");
    }

    #[test]
    fn strings_are_left_alone() {
        for text in [r#""//""#, r#""a\"/*" : 1"#, r#""open //"#, "1 / 2"] {
            assert_eq!(blank(text), text);
        }
    }
}
