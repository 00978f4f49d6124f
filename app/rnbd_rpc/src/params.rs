//! What was given on the command line as the parameters of a call.

use std::io;

use clap::ArgMatches;
use rnbd_rpc::{Method, Param, Schema, Type};
use serde_json::{Map, Value};

use crate::method::MethodOption;

const INVALID: &str = "Invalid parameters: ";

/// The parameters that the options give, or `None` for none, after the checks that the server does.
///
/// # Errors
/// A text that names the parameter and what it may be.
pub(crate) fn method_params(
    schema: &'static Schema,
    method: &'static Method,
    arguments: &ArgMatches,
) -> Result<Option<Value>, String> {
    let mut params = Map::new();
    for option in MethodOption::all(schema, method) {
        if let Some(value) = given(option, arguments) {
            put(&mut params, option, value);
        }
    }
    // Methods without parameters refuse even an empty object.
    let params = (!params.is_empty()).then_some(Value::Object(params));
    match schema.validate(method, params.clone()) {
        Ok(_) => Ok(params),
        Err(error) => Err(error.message.replacen(INVALID, "", 1)),
    }
}

fn given(option: MethodOption, arguments: &ArgMatches) -> Option<Value> {
    let negated = option.param.kind == Type::Boolean && arguments.get_flag(&option.negated_id());
    match negated {
        true => Some(Value::Bool(false)),
        false => arguments.get_one::<Value>(&option.id()).cloned(),
    }
}

fn put(params: &mut Map<String, Value>, option: MethodOption, value: Value) {
    let name = option.param.name.clone();
    let Some(owner) = option.owner else {
        params.insert(name, value);
        return;
    };
    let object = params
        .entry(&owner.name)
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(members) = object.as_object_mut() {
        members.insert(name, value);
    }
}

/// JSON from the command line, or from standard input if the text is `-`.
///
/// # Errors
/// If it is no JSON, or standard input cannot be read.
pub(crate) fn json_text(text: &str) -> Result<Value, String> {
    if text != "-" {
        return parse_json(text);
    }
    let text = io::read_to_string(io::stdin())
        .map_err(|error| format!("standard input cannot be read: {error}"))?;
    parse_json(&text)
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("this is no JSON: {error}"))
}

/// An array: JSON, or its elements with commas between them.
///
/// # Errors
/// If it begins as JSON and is none, or an element is no number that should be one.
pub(crate) fn list_or_json(items: Type, text: &str) -> Result<Value, String> {
    if text == "-" || text.trim_start().starts_with('[') {
        return json_text(text);
    }
    let elements = text.split(',');
    elements.map(|text| element(items, text)).collect()
}

fn element(kind: Type, text: &str) -> Result<Value, String> {
    match kind {
        Type::String | Type::Uuid | Type::Enum => Ok(text.into()),
        Type::Boolean | Type::Object | Type::Array => parse_json(text),
        Type::Uint8 | Type::Uint16 | Type::Uint32 | Type::Uint64 | Type::Int32 => {
            integer(text).ok_or_else(|| format!("'{text}' is no integer"))
        }
    }
}

/// A number within the limits of `param`; `0x` begins a hexadecimal one.
///
/// # Errors
/// A text with the limits.
pub(crate) fn number(param: &Param, text: &str) -> Result<Value, String> {
    let (least, greatest) = param.kind.integer_range().unwrap_or((0, 0));
    let least = param.minimum.unwrap_or(least);
    let greatest = param.maximum.unwrap_or(greatest);
    let limits = i128::from(least)..=i128::from(greatest);
    let number = integer(text);
    number
        .filter(|number| {
            let number = number.as_number().and_then(serde_json::Number::as_i128);
            number.is_some_and(|number| limits.contains(&number))
        })
        .ok_or_else(|| format!("must be an integer from {least} to {greatest}"))
}

fn integer(text: &str) -> Option<Value> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => i128::from(u64::from_str_radix(digits, 16).ok()?),
        None => text.parse().ok()?,
    };
    serde_json::Number::from_i128(number).map(Value::Number)
}

#[cfg(test)]
mod tests;
