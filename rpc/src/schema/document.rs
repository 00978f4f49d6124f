//! The schema as a document for people.

use std::fmt::Write;

use super::{Array, Method, Param, Schema, State, Type};

const HEAD: &str = "\
# JSON-RPC methods

Written from `rpc/schema.yaml`; the tests of `rnbd-rpc` fail when this file is stale, and write it
anew when `UPDATE_GENERATED=1` is set.

The server speaks JSON-RPC 2.0 over a Unix socket, as SPDK does: values follow each other without
any framing, any number of requests may be in flight, and replies come as they are ready. Every
method may answer these errors:

| Code | When |
| --- | --- |
| -32600 | the request is no JSON-RPC request |
| -32601 | there is no such method, or it is not allowed |
| -32602 | a parameter is unknown, missing, of the wrong type or out of its range |
| -1 | the method may not be called before, or after, `framework_start_init` |
| -32603 | the operation failed; the text says why |

Other negative codes are negated errno values.
";

impl Schema {
    /// The documentation of all methods that are not private, in Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = HEAD.to_owned();
        let methods = self.methods.iter().filter(|method| !method.private);
        for method in methods {
            text.push('\n');
            self.write_method(&mut text, method);
        }
        text
    }

    fn write_method(&self, text: &mut String, method: &Method) {
        let name = &method.name;
        line(
            text,
            &format!("## {name}\n\n{}\n", method.description.trim()),
        );
        if let Some(alias) = &method.alias {
            line(text, &format!("Deprecated name: `{alias}`.\n"));
        }
        if let Some(program) = &method.program {
            line(text, &format!("Served by `{program}` only.\n"));
        }
        line(text, &format!("{}\n", states(&method.states)));
        if method.params.is_empty() {
            line(text, "No parameters.\n");
        } else {
            line(
                text,
                "| Parameter | Type | Default | Description |\n| --- | --- | --- | --- |",
            );
            self.write_params(text, &method.params, "");
            text.push('\n');
        }
        line(text, &format!("Result: {}", method.result.trim()));
        if !method.errors.is_empty() {
            line(text, "\n| Error | When |\n| --- | --- |");
        }
        for error in &method.errors {
            line(text, &format!("| {} | {} |", error.code, error.when.trim()));
        }
    }

    /// Members of objects follow their parameter, with its name before theirs.
    fn write_params(&self, text: &mut String, params: &[Param], prefix: &str) {
        for param in params {
            let name = format!("{prefix}{}", param.name);
            let default = match (&param.default, param.required) {
                (_, true) => "required".to_owned(),
                (Some(default), _) => format!("`{default}`"),
                (None, _) => String::new(),
            };
            let kind = self.type_text(param);
            let description = param.description.trim();
            line(
                text,
                &format!("| `{name}` | {kind} | {default} | {description} |"),
            );
            let (inner, prefix) = match param.kind {
                Type::Object => (param.class.as_deref(), format!("{name}.")),
                Type::Array => (self.item_object(param), format!("{name}[].")),
                _ => (None, String::new()),
            };
            if let Some(object) = inner.and_then(|class| self.object(class)) {
                self.write_params(text, &object.fields, &prefix);
            }
        }
    }

    fn item_object(&self, param: &Param) -> Option<&str> {
        let array = self.array(param.class.as_deref()?)?;
        array.class.as_deref()
    }

    fn type_text(&self, param: &Param) -> String {
        let class = param.class.as_deref().unwrap_or_default();
        match param.kind {
            Type::Enum => self.words(class),
            Type::Array => self
                .array(class)
                .map_or_else(String::new, |a| self.array_text(a)),
            kind => format!("{}{}", kind.name(), limits(param)),
        }
    }

    fn array_text(&self, array: &Array) -> String {
        let item = match array.item_type {
            Type::Enum => self.words(array.class.as_deref().unwrap_or_default()),
            kind => kind.name().to_owned(),
        };
        let limit = array.max_count.map(|count| format!(", at most {count}"));
        format!("array of {item}{}", limit.unwrap_or_default())
    }

    fn words(&self, class: &str) -> String {
        let fields = self.enumeration(class).map_or(&[][..], |e| &e.fields[..]);
        let words: Vec<String> = fields.iter().map(|f| format!("`{}`", f.name)).collect();
        words.join(", ")
    }
}

impl Type {
    /// As the schema spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Uint8 => "uint8",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Int32 => "int32",
            Self::Uuid => "uuid",
            Self::Enum => "enum",
            Self::Object => "object",
            Self::Array => "array",
        }
    }
}

fn limits(param: &Param) -> String {
    match (param.minimum, param.maximum, param.length_max) {
        (Some(least), Some(greatest), _) => format!(", {least} to {greatest}"),
        (Some(least), None, _) => format!(", at least {least}"),
        (None, Some(greatest), _) => format!(", at most {greatest}"),
        (None, None, Some(length)) => format!(", at most {length} bytes"),
        (None, None, None) => String::new(),
    }
}

fn states(states: &[State]) -> &'static str {
    match states {
        [State::Startup] => "Before `framework_start_init` only.",
        [State::Runtime] => "After `framework_start_init` only.",
        _ => "At any time.",
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}
