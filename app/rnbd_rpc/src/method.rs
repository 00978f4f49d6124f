//! A method of the schema as a command with options.

use std::fmt::Write;

use clap::builder::{BoolValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, Command};
use rnbd_console::server::symbol;
use rnbd_rpc::{Method, MethodError, Param, Schema, State, Type};
use serde_json::Value;

use crate::params::{json_text, list_or_json, number};

/// A parameter, or a member of a parameter that is an object, as an option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MethodOption {
    /// The object that this is a member of.
    pub(crate) owner: Option<&'static Param>,
    /// What it sets.
    pub(crate) param: &'static Param,
}

impl MethodOption {
    /// All options of a method. An object is an option of its own, with JSON as its value, and so
    /// is each of its members whose name no parameter has.
    pub(crate) fn all(schema: &'static Schema, method: &'static Method) -> Vec<Self> {
        let mut options: Vec<Self> = Vec::new();
        for param in &method.params {
            options.push(Self { owner: None, param });
        }
        for owner in &method.params {
            for param in members(schema, owner) {
                if options.iter().all(|option| option.param.name != param.name) {
                    options.push(Self {
                        owner: Some(owner),
                        param,
                    });
                }
            }
        }
        options
    }

    /// What clap knows the option by.
    pub(crate) fn id(self) -> String {
        match self.owner {
            Some(owner) => format!("{}.{}", owner.name, self.param.name),
            None => self.param.name.clone(),
        }
    }

    /// What clap knows the flag by that says no to a boolean.
    pub(crate) fn negated_id(self) -> String {
        format!("no {}", self.id())
    }

    fn flag(self) -> String {
        self.param.name.replace('_', "-")
    }
}

/// The members of an object.
fn members(schema: &'static Schema, param: &Param) -> &'static [Param] {
    let class = param.class.as_deref().unwrap_or_default();
    match param.kind {
        Type::Object => schema.object(class).map_or(&[], |object| &object.fields),
        _ => &[],
    }
}

/// The command of a method.
pub(crate) fn command(schema: &'static Schema, method: &'static Method) -> Command {
    let options = MethodOption::all(schema, method);
    let mut command = Command::new(&method.name)
        .about(plain(&method.description))
        .after_help(after_help(method))
        .hide(true);
    if let Some(alias) = &method.alias {
        command = command.alias(alias);
    }
    for &option in &options {
        command = command.arg(argument(schema, option, &options));
        if option.param.kind == Type::Boolean {
            command = command.arg(negation(option));
        }
    }
    command
}

fn argument(schema: &'static Schema, option: MethodOption, all: &[MethodOption]) -> Arg {
    let arg = Arg::new(option.id())
        .long(option.flag())
        .help(help(schema, option.param));
    let arg = with_underscores(arg, option);
    required(typed(schema, arg, option.param), option, all)
}

/// `--device_path` beside `--device-path`.
fn with_underscores(arg: Arg, option: MethodOption) -> Arg {
    match option.param.name.contains('_') {
        true => arg.alias(&option.param.name),
        false => arg,
    }
}

/// `--no-read-only`, as SPDK's client has it for `--read-only=false`.
fn negation(option: MethodOption) -> Arg {
    Arg::new(option.negated_id())
        .long(format!("no-{}", option.flag()))
        .action(ArgAction::SetTrue)
        .conflicts_with(option.id())
        .hide(true)
}

/// Adds how a value of the parameter's type is read; each is read as a [`Value`].
fn typed(schema: &'static Schema, arg: Arg, param: &'static Param) -> Arg {
    match param.kind {
        Type::String => arg.value_name("TEXT").value_parser(text),
        Type::Uuid => arg.value_name("UUID").value_parser(text),
        Type::Boolean => arg
            .value_name("true|false")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true)
            .value_parser(BoolValueParser::new().map(Value::Bool)),
        Type::Enum => arg
            .value_name("WORD")
            .ignore_case(true)
            .value_parser(words(schema, param).map(Value::String)),
        Type::Object => arg.value_name("JSON").value_parser(json_text),
        Type::Array => {
            let items = item_type(schema, param);
            arg.value_name(list_name(items))
                .value_parser(move |text: &str| list_or_json(items, text))
        }
        Type::Uint8 | Type::Uint16 | Type::Uint32 | Type::Uint64 | Type::Int32 => arg
            .value_name("NUMBER")
            .allow_negative_numbers(true)
            .value_parser(|text: &str| number(param, text)),
    }
}

fn item_type(schema: &Schema, param: &Param) -> Type {
    let class = param.class.as_deref().unwrap_or_default();
    schema
        .array(class)
        .map_or(Type::String, |array| array.item_type)
}

fn list_name(items: Type) -> &'static str {
    match items {
        Type::Object | Type::Array => "JSON",
        _ => "A,B,...",
    }
}

#[expect(clippy::unnecessary_wraps, reason = "what clap takes for a parser")]
fn text(text: &str) -> Result<Value, String> {
    Ok(text.into())
}

fn words(schema: &'static Schema, param: &Param) -> PossibleValuesParser {
    let class = param.class.as_deref().unwrap_or_default();
    let fields = schema
        .enumeration(class)
        .map_or(&[][..], |entry| &entry.fields);
    let words = fields.iter().map(|field| {
        let word = PossibleValue::new(&field.name);
        match field.description.is_empty() {
            true => word,
            false => word.help(plain(&field.description)),
        }
    });
    PossibleValuesParser::new(words)
}

/// Adds without which other options this one must be there, and with which it must not.
fn required(arg: Arg, option: MethodOption, all: &[MethodOption]) -> Arg {
    let param = option.param;
    if let Some(owner) = option.owner {
        return match param.required && owner.required {
            true => arg.required_unless_present(&owner.name),
            false => arg,
        };
    }
    let members = all.iter().filter(|other| {
        let owner = other.owner.map(|owner| &owner.name);
        owner == Some(&param.name)
    });
    let stands_for_it = members.clone().any(|member| member.param.required);
    let others = members.map(|member| member.id());
    arg.required(param.required && !stands_for_it)
        .conflicts_with_all(others)
}

fn help(schema: &Schema, param: &Param) -> String {
    let mut text = plain(&param.description);
    if let Some(members) = json_members(schema, param) {
        let _ = write!(text, " [members: {members}]");
    }
    if let Some(limits) = limits(param) {
        let _ = write!(text, " [{limits}]");
    }
    match &param.default {
        Some(Value::String(word)) => {
            let _ = write!(text, " [default: {word}]");
        }
        Some(default) => {
            let _ = write!(text, " [default: {default}]");
        }
        None => {}
    }
    text
}

/// The keys of an object, or of the objects of an array.
fn json_members(schema: &Schema, param: &Param) -> Option<String> {
    let class = param.class.as_deref()?;
    let class = match param.kind {
        Type::Array => schema.array(class)?.class.as_deref()?,
        _ => class,
    };
    let fields = schema.object(class)?.fields.iter();
    let names: Vec<&str> = fields.map(|field| field.name.as_str()).collect();
    Some(names.join(", "))
}

/// What a parameter may be beyond what its type says.
fn limits(param: &Param) -> Option<String> {
    if let Some(limit) = param.length_max {
        return Some(format!("at most {limit} bytes"));
    }
    if param.minimum.is_none() && param.maximum.is_none() {
        return None;
    }
    let (least, greatest) = param.kind.integer_range()?;
    let least = param.minimum.unwrap_or(least);
    match param.maximum {
        None if greatest >= u64::from(i32::MAX.unsigned_abs()) => Some(format!("at least {least}")),
        greatest_set => {
            let greatest = greatest_set.unwrap_or(greatest);
            Some(format!("{least} to {greatest}"))
        }
    }
}

fn after_help(method: &Method) -> String {
    let states = match method.states[..] {
        [State::Startup] => "before framework_start_init",
        [State::Runtime] => "after framework_start_init",
        _ => "at any time",
    };
    let result = plain(&method.result);
    let mut text = format!("Result: {result}\nMay be called: {states}");
    if !method.errors.is_empty() {
        text.push_str("\nErrors:");
    }
    for error in &method.errors {
        let _ = write!(
            text,
            "\n  {:18} {}",
            error_name(error),
            plain(error.when.trim())
        );
    }
    text
}

fn error_name(error: &MethodError) -> String {
    match symbol(error.code) {
        Some(symbol) => format!("{} {symbol}", error.code),
        None => error.code.to_string(),
    }
}

/// Texts of the schema are Markdown; a terminal shows them without its marks and line breaks.
pub(crate) fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('`', "")
}
