//! JSON exactly as Python's `json.dump` writes it, so that a configuration saved by this program
//! and one saved by SPDK's client are the same bytes.

use serde_json::Value;

/// `value` on one line if `indent` is `None`, else with each element on a line of its own.
pub(crate) fn to_string(value: &Value, indent: Option<usize>) -> String {
    let mut writer = Writer {
        text: String::new(),
        indent,
        depth: 0,
    };
    writer.value(value);
    writer.text
}

struct Writer {
    text: String,
    indent: Option<usize>,
    depth: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(items) => self.elements('[', items, ']', |this, item| this.value(item)),
            Value::Object(members) => {
                self.elements('{', members, '}', |this, (key, value)| {
                    this.string(key);
                    this.text.push_str(": ");
                    this.value(value);
                });
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                self.text.push_str(&value.to_string());
            }
        }
    }

    fn elements<T>(
        &mut self,
        open: char,
        elements: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        close: char,
        mut write: impl FnMut(&mut Self, T),
    ) {
        let elements = elements.into_iter();
        let count = elements.len();
        self.text.push(open);
        self.depth += 1;
        for (index, element) in elements.enumerate() {
            match (index, self.indent) {
                (0, _) => {}
                (_, None) => self.text.push_str(", "),
                (_, Some(_)) => self.text.push(','),
            }
            self.new_line();
            write(self, element);
        }
        self.depth -= 1;
        if count > 0 {
            self.new_line();
        }
        self.text.push(close);
    }

    fn new_line(&mut self) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            let spaces = indent * self.depth;
            self.text.extend(std::iter::repeat_n(' ', spaces));
        }
    }

    /// Everything but printable ASCII is escaped, in UTF-16.
    fn string(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        for char in quoted.chars() {
            if matches!(char, ' '..='~') {
                self.text.push(char);
                continue;
            }
            for unit in char.encode_utf16(&mut [0; 2]) {
                self.text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // The expected texts were printed by Python 3.11.

    #[test]
    fn indented_as_python_does_it() {
        let value =
            json!({"subsystems": [{"subsystem": "nbd", "config": []}, {"a": {}, "b": null}]});
        let expected = r#"{
  "subsystems": [
    {
      "subsystem": "nbd",
      "config": []
    },
    {
      "a": {},
      "b": null
    }
  ]
}"#;
        assert_eq!(to_string(&value, Some(2)), expected);
    }

    #[test]
    fn on_one_line_as_python_does_it() {
        let value = json!({"a": [1, -2, true, null], "b": {"c": "d"}});
        let expected = r#"{"a": [1, -2, true, null], "b": {"c": "d"}}"#;
        assert_eq!(to_string(&value, None), expected);
    }

    #[test]
    fn without_width_lines_still_end() {
        assert_eq!(to_string(&json!([1, [2]]), Some(0)), "[\n1,\n[\n2\n]\n]");
    }

    #[test]
    fn only_ascii_is_written() {
        let value = json!("ä\u{1f600}\u{7f}\u{1}\n\"\\/");
        let expected = r#""\u00e4\ud83d\ude00\u007f\u0001\n\"\\/""#;
        assert_eq!(to_string(&value, Some(2)), expected);
    }
}
