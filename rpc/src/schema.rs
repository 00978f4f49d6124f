//! The description of every RPC method, from which parameters are checked, the documentation is
//! written and the clients get their commands.
//!
//! The source is `schema.yaml`, in the format of SPDK's own schema with these keys more:
//! `default`, `minimum`, `maximum` and `length_max` of a parameter; `result`, `states`, `errors` and
//! `program` of a method. It is read when the program starts (a few milliseconds) and not at build
//! time: so there is no generated code to keep in step, and the tables that decoding needs are the
//! same that the clients and the documentation read.

mod document;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

const TEXT: &str = include_str!("../schema.yaml");

/// All methods and the types that their parameters refer to.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// Sets of words.
    #[serde(default)]
    pub enums: Vec<Enum>,
    /// Parameters that are objects.
    #[serde(default)]
    pub objects: Vec<Object>,
    /// Parameters that are arrays.
    #[serde(default)]
    pub arrays: Vec<Array>,
    /// In the order of the documentation.
    pub methods: Vec<Method>,
}

/// Words of which one is to be given.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Enum {
    /// What a parameter's `class` says.
    pub name: String,
    /// The words.
    pub fields: Vec<EnumField>,
}

/// One word of an [`Enum`].
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EnumField {
    /// The word.
    pub name: String,
    /// What it means.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// An object with known members.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// What a parameter's `class` says.
    pub name: String,
    /// The members.
    pub fields: Vec<Param>,
}

/// An array of one type.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Array {
    /// What a parameter's `class` says.
    pub name: String,
    /// The elements' type.
    pub item_type: Type,
    /// The elements' class, if their type is an enum or an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// How many elements there may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_count: Option<usize>,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Type {
    String,
    Boolean,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int32,
    Uuid,
    Enum,
    Object,
    Array,
}

/// A parameter of a method, or a member of an [`Object`].
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    /// Its key.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Type,
    /// What it does.
    pub description: String,
    /// Whether it must be there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// The enum, object or array that `type` leaves open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// What is assumed when it is absent. Without one, absence has a meaning of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The least number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// The greatest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<u64>,
    /// The longest string, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_max: Option<usize>,
}

/// One method.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// When it may be called; at run time only unless said otherwise.
    #[serde(default = "runtime_only")]
    pub states: Vec<State>,
    /// Its parameters. A method without any refuses even an empty object.
    #[serde(default)]
    pub params: Vec<Param>,
    /// What it answers.
    pub result: String,
    /// The errors beside those that every method has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<MethodError>,
    /// The only program that serves it; all do if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// A deprecated second name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Not for users.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private: bool,
}

/// An error that a method is known to answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MethodError {
    /// The code.
    pub code: i64,
    /// In which case.
    pub when: String,
}

/// How far the program has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Before `framework_start_init`.
    Startup,
    /// All subsystems are there.
    Runtime,
}

impl Method {
    /// Whether `program` serves it.
    #[must_use]
    pub fn is_served_by(&self, program: &str) -> bool {
        self.program.as_deref().is_none_or(|only| only == program)
    }
}

fn runtime_only() -> Vec<State> {
    vec![State::Runtime]
}

impl Schema {
    /// The schema of this project's methods.
    ///
    /// # Panics
    /// If `schema.yaml` is malformed, which the tests of this crate exclude.
    #[must_use]
    pub fn builtin() -> &'static Self {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(|| Self::parse(TEXT).expect("the tests parse the same text"))
    }

    /// Reads a schema and checks that it is consistent.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn parse(yaml: &str) -> Result<Self, String> {
        let schema: Self = serde_yaml_ng::from_str(yaml).map_err(|error| error.to_string())?;
        schema.check()?;
        Ok(schema)
    }

    /// The method of that name; aliases do not count.
    #[must_use]
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }

    /// Checks that `registered` are exactly the methods that the schema has for `program`.
    ///
    /// # Errors
    /// A text with the methods that are on one side only.
    pub fn check_registered<'a>(
        &self,
        program: &str,
        registered: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), String> {
        let registered: BTreeSet<&str> = registered.into_iter().collect();
        let served = self.methods.iter().filter(|m| m.is_served_by(program));
        let described: BTreeSet<&str> = served.map(|m| m.name.as_str()).collect();
        let missing: Vec<&str> = described.difference(&registered).copied().collect();
        let extra: Vec<&str> = registered.difference(&described).copied().collect();
        if missing.is_empty() && extra.is_empty() {
            return Ok(());
        }
        Err(format!(
            "in the schema but not registered: {missing:?}; registered but not in the schema: {extra:?}"
        ))
    }

    /// The schema as JSON, for clients in other languages.
    ///
    /// # Panics
    /// Never: all keys are strings.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a schema's keys are strings");
        text.push('\n');
        text
    }

    /// The enum of that name.
    #[must_use]
    pub fn enumeration(&self, class: &str) -> Option<&Enum> {
        self.enums.iter().find(|entry| entry.name == class)
    }

    /// The object of that name.
    #[must_use]
    pub fn object(&self, class: &str) -> Option<&Object> {
        self.objects.iter().find(|entry| entry.name == class)
    }

    /// The array of that name.
    #[must_use]
    pub fn array(&self, class: &str) -> Option<&Array> {
        self.arrays.iter().find(|entry| entry.name == class)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = BTreeMap::new();
        for method in &self.methods {
            for name in std::iter::once(&method.name).chain(&method.alias) {
                if names.insert(name, ()).is_some() {
                    return Err(format!("method {name} is there twice"));
                }
            }
            self.check_params(&method.name, &method.params)?;
        }
        for object in &self.objects {
            self.check_params(&object.name, &object.fields)?;
        }
        for array in &self.arrays {
            self.check_class(&array.name, array.item_type, array.class.as_deref())?;
        }
        Ok(())
    }

    fn check_params(&self, owner: &str, params: &[Param]) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for param in params {
            let place = format!("{owner}.{}", param.name);
            if !names.insert(&param.name) {
                return Err(format!("{place} is there twice"));
            }
            self.check_class(&place, param.kind, param.class.as_deref())?;
            if let Some(default) = &param.default {
                if param.required {
                    return Err(format!("{place} is required and has a default"));
                }
                self.check_value(param, default.clone())
                    .map_err(|error| format!("the default of {place}: {error}"))?;
            }
        }
        Ok(())
    }

    fn check_class(&self, place: &str, kind: Type, class: Option<&str>) -> Result<(), String> {
        let known = match (kind, class) {
            (Type::Enum, Some(class)) => self.enumeration(class).is_some(),
            (Type::Object, Some(class)) => self.object(class).is_some(),
            (Type::Array, Some(class)) => self.array(class).is_some(),
            (Type::Enum | Type::Object | Type::Array, None) => false,
            (_, class) => class.is_none(),
        };
        if known {
            Ok(())
        } else {
            Err(format!("{place}: {class:?} is no class of its type"))
        }
    }
}

#[cfg(test)]
mod tests;
