//! Checks values against the schema and fills in defaults.

use serde_json::{Map, Number, Value};

use super::{Array, Method, Param, Schema, Type};
use crate::RpcError;

/// The name of a value that is no member of its own.
const ROOT: &str = "";

impl Schema {
    /// Checks the parameters of a call and adds the defaults of absent ones.
    ///
    /// # Errors
    /// -32602 with a text that names the key and what it may be.
    pub fn validate(
        &self,
        method: &Method,
        params: Option<Value>,
    ) -> Result<Map<String, Value>, RpcError> {
        let given = match params {
            None => Map::new(),
            Some(_) if method.params.is_empty() => {
                let text = format!("{} requires no parameters", method.name);
                return Err(RpcError::invalid_params(text));
            }
            Some(Value::Object(given)) => given,
            Some(_) => return Err(invalid("parameters must be given by name, in an object")),
        };
        self.check_members(&method.params, given, ROOT)
            .map_err(|text| invalid(&text))
    }

    fn check_members(
        &self,
        params: &[Param],
        given: Map<String, Value>,
        path: &str,
    ) -> Result<Map<String, Value>, String> {
        let mut checked = Map::new();
        for (key, value) in given {
            let param = params.iter().find(|param| param.name == key);
            let param = param.ok_or_else(|| unknown_key(&join(path, &key), params))?;
            let value = self.check_param(param, value, &join(path, &key))?;
            checked.insert(key, value);
        }
        for param in params {
            if checked.contains_key(&param.name) {
                continue;
            }
            if param.required {
                return Err(format!("'{}' is missing", join(path, &param.name)));
            }
            if let Some(default) = &param.default {
                checked.insert(param.name.clone(), default.clone());
            }
        }
        Ok(checked)
    }

    /// Checks one value by itself.
    pub(super) fn check_value(&self, param: &Param, value: Value) -> Result<Value, String> {
        self.check_param(param, value, &param.name)
    }

    fn check_param(&self, param: &Param, value: Value, path: &str) -> Result<Value, String> {
        let value = self.check_type(param.kind, param.class.as_deref(), value, path)?;
        check_range(param, &value, path)?;
        check_length(param, &value, path)?;
        Ok(value)
    }

    fn check_type(
        &self,
        kind: Type,
        class: Option<&str>,
        value: Value,
        path: &str,
    ) -> Result<Value, String> {
        let class = class.unwrap_or_default();
        match (kind, value) {
            (Type::String, value @ Value::String(_)) | (Type::Boolean, value @ Value::Bool(_)) => {
                Ok(value)
            }
            (Type::String, _) => Err(format!("'{path}' must be a string")),
            (Type::Boolean, _) => Err(format!("'{path}' must be true or false")),
            (Type::Uuid, Value::String(text)) if is_uuid(&text) => Ok(Value::String(text)),
            (Type::Uuid, _) => Err(format!("'{path}' must be a UUID")),
            (Type::Enum, value) => self.check_word(class, &value, path),
            (Type::Object, Value::Object(members)) => {
                let fields = self
                    .object(class)
                    .map_or(&[][..], |object| &object.fields[..]);
                self.check_members(fields, members, path).map(Value::Object)
            }
            (Type::Object, _) => Err(format!("'{path}' must be an object")),
            (Type::Array, Value::Array(items)) => self.check_items(class, items, path),
            (Type::Array, _) => Err(format!("'{path}' must be an array")),
            (kind, value) => check_number(kind, &value, path),
        }
    }

    /// The word as the schema spells it, in whatever case it was given.
    fn check_word(&self, class: &str, value: &Value, path: &str) -> Result<Value, String> {
        let fields = self.enumeration(class).map_or(&[][..], |e| &e.fields[..]);
        let words = fields.iter().map(|field| field.name.as_str());
        let given = value.as_str().unwrap_or_default();
        match words.clone().find(|word| word.eq_ignore_ascii_case(given)) {
            Some(word) => Ok(word.into()),
            None => {
                let known: Vec<&str> = words.collect();
                Err(format!("'{path}' must be one of {}", known.join(", ")))
            }
        }
    }

    fn check_items(&self, class: &str, items: Vec<Value>, path: &str) -> Result<Value, String> {
        let Some(array) = self.array(class) else {
            return Err(format!("'{path}' has no known element type"));
        };
        if let Some(limit) = array.max_count.filter(|&limit| items.len() > limit) {
            return Err(format!("'{path}' may have at most {limit} elements"));
        }
        let items: Result<Vec<Value>, String> = (0..)
            .zip(items)
            .map(|(index, item)| self.check_item(array, item, &format!("{path}[{index}]")))
            .collect();
        items.map(Value::Array)
    }

    fn check_item(&self, array: &Array, item: Value, path: &str) -> Result<Value, String> {
        self.check_type(array.item_type, array.class.as_deref(), item, path)
    }
}

impl Type {
    /// The least and the greatest value of an integer type.
    #[must_use]
    pub fn integer_range(self) -> Option<(i64, u64)> {
        match self {
            Self::Uint8 => Some((0, u8::MAX.into())),
            Self::Uint16 => Some((0, u16::MAX.into())),
            Self::Uint32 => Some((0, u32::MAX.into())),
            Self::Uint64 => Some((0, u64::MAX)),
            Self::Int32 => Some((i32::MIN.into(), i32::MAX.unsigned_abs().into())),
            _ => None,
        }
    }
}

fn check_number(kind: Type, value: &Value, path: &str) -> Result<Value, String> {
    let (least, greatest) = kind.integer_range().unwrap_or((0, 0));
    let number = integer(value).filter(|&n| in_range(n, least, greatest));
    match number {
        Some(number) => Ok(to_value(number)),
        None => Err(format!(
            "'{path}' must be an integer from {least} to {greatest}"
        )),
    }
}

fn check_range(param: &Param, value: &Value, path: &str) -> Result<(), String> {
    let (Some(number), Some((least, greatest))) = (integer(value), param.kind.integer_range())
    else {
        return Ok(());
    };
    let least = param.minimum.unwrap_or(least);
    let greatest = param.maximum.unwrap_or(greatest);
    if in_range(number, least, greatest) {
        return Ok(());
    }
    Err(format!("'{path}' must be from {least} to {greatest}"))
}

fn check_length(param: &Param, value: &Value, path: &str) -> Result<(), String> {
    match (value.as_str(), param.length_max) {
        (Some(text), Some(limit)) if text.len() > limit => {
            Err(format!("'{path}' may have at most {limit} bytes"))
        }
        _ => Ok(()),
    }
}

fn in_range(number: i128, least: i64, greatest: u64) -> bool {
    (i128::from(least)..=i128::from(greatest)).contains(&number)
}

/// The integer that a JSON number is, however it is written: `4096`, `4096.0` or `4.096e3`.
fn integer(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    if let Some(number) = number.as_i128() {
        return Some(number);
    }
    let float = number.as_f64()?;
    let is_exact = float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an exact integer of at most 2^53"
    )]
    is_exact.then_some(float as i128)
}

fn to_value(number: i128) -> Value {
    Number::from_i128(number).map_or(Value::Null, Value::Number)
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn unknown_key(key: &str, params: &[Param]) -> String {
    let known: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
    format!("'{key}' is not known; known are {}", known.join(", "))
}

fn join(path: &str, key: &str) -> String {
    match path {
        ROOT => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

fn invalid(text: &str) -> RpcError {
    RpcError::invalid_params(format!("Invalid parameters: {text}"))
}
