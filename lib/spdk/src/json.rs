//! SPDK's JSON, read and written.

use std::fmt;
use std::ptr::NonNull;

use rnbd_spdk_sys as sys;
use rnbd_spdk_sys::spdk_json_val_type as kind;
use serde_json::{Map, Value};

/// Where SPDK wants JSON written to.
pub struct Writer(NonNull<sys::spdk_json_write_ctx>);

impl Writer {
    /// # Safety
    /// `raw` is a valid context as long as the returned value is used.
    pub(crate) unsafe fn new(raw: NonNull<sys::spdk_json_write_ctx>) -> Self {
        Self(raw)
    }

    /// Writes a value: an element of the array, or the value of the name, that is open.
    pub fn value(&mut self, value: &Value) {
        let text = value.to_string();
        // SAFETY: the context is valid (see `new`), and the text is a whole JSON value.
        unsafe {
            sys::spdk_json_write_val_raw(self.0.as_ptr(), text.as_ptr().cast(), text.len());
        }
    }

    /// Writes a member of the object that is open.
    pub fn member(&mut self, name: &str, value: &Value) {
        // SAFETY: the context is valid (see `new`), the name lives through the call.
        unsafe {
            sys::spdk_json_write_name_raw(self.0.as_ptr(), name.as_ptr().cast(), name.len());
        }
        self.value(value);
    }

    /// Writes an array of these values.
    pub fn array(&mut self, values: &[Value]) {
        self.value(&Value::Array(values.to_vec()));
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

/// Reads what SPDK has parsed; `None` for what is no JSON.
///
/// # Safety
/// `first` is the first of the values that SPDK's parser made of a whole JSON value.
pub(crate) unsafe fn read(first: *const sys::spdk_json_val) -> Option<Value> {
    let first = NonNull::new(first.cast_mut())?;
    // SAFETY: the caller says so.
    let count = unsafe { first.as_ref() }.len as usize + 2;
    // SAFETY: a container has `len` values and its end behind its beginning; of anything else only
    // the first is looked at.
    let container = matches!(
        unsafe { first.as_ref() }.type_,
        kind::SPDK_JSON_VAL_ARRAY_BEGIN | kind::SPDK_JSON_VAL_OBJECT_BEGIN
    );
    let len = if container { count } else { 1 };
    // SAFETY: as above.
    let values = unsafe { std::slice::from_raw_parts(first.as_ptr(), len) };
    Reader { values }.value()
}

struct Reader<'a> {
    values: &'a [sys::spdk_json_val],
}

impl Reader<'_> {
    fn next(&mut self) -> Option<&sys::spdk_json_val> {
        let (first, rest) = self.values.split_first()?;
        self.values = rest;
        Some(first)
    }

    fn value(&mut self) -> Option<Value> {
        let value = self.next()?;
        match value.type_ {
            kind::SPDK_JSON_VAL_NULL => Some(Value::Null),
            kind::SPDK_JSON_VAL_TRUE => Some(Value::Bool(true)),
            kind::SPDK_JSON_VAL_FALSE => Some(Value::Bool(false)),
            kind::SPDK_JSON_VAL_NUMBER => serde_json::from_slice(text(value)).ok(),
            kind::SPDK_JSON_VAL_STRING => Some(Value::String(string(value))),
            kind::SPDK_JSON_VAL_ARRAY_BEGIN => self.array(),
            kind::SPDK_JSON_VAL_OBJECT_BEGIN => self.object(),
            _ => None,
        }
    }

    fn array(&mut self) -> Option<Value> {
        let mut array = Vec::new();
        while self.values.first()?.type_ != kind::SPDK_JSON_VAL_ARRAY_END {
            array.push(self.value()?);
        }
        self.next();
        Some(Value::Array(array))
    }

    fn object(&mut self) -> Option<Value> {
        let mut object = Map::new();
        loop {
            let name = self.next()?;
            if name.type_ == kind::SPDK_JSON_VAL_OBJECT_END {
                return Some(Value::Object(object));
            }
            let name = string(name);
            object.insert(name, self.value()?);
        }
    }
}

fn text(value: &sys::spdk_json_val) -> &[u8] {
    // SAFETY: strings, names and numbers are `len` bytes at `start`, which outlive the values.
    unsafe { std::slice::from_raw_parts(value.start.cast(), value.len as usize) }
}

fn string(value: &sys::spdk_json_val) -> String {
    String::from_utf8_lossy(text(value)).into_owned()
}
