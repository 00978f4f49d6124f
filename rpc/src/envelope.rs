//! Requests and replies as JSON-RPC frames them, with SPDK's strictness (spdk-conventions.md A.2).

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::RpcError;
use crate::framing::Malformed;
use crate::registry::RpcResult;
use crate::strict_json::StrictValue;

const NULL: &str = "null";

/// A request's id, in the very text in which it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Id(Option<Box<str>>);

/// One call.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) id: Id,
    pub(crate) method: String,
    pub(crate) params: Option<Value>,
}

/// A request that cannot be carried out, and whom to tell.
#[derive(Debug, PartialEq)]
pub(crate) struct BadRequest {
    pub(crate) id: Id,
    pub(crate) error: RpcError,
}

type Parsed = Result<Request, BadRequest>;

/// What one JSON value asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    Single(Parsed),
    /// Never empty.
    Batch(Vec<Parsed>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow)]
    method: &'a RawValue,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// Tells a member that is `null` from one that is absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Incoming {
    /// Reads one complete value.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let value: &RawValue = serde_json::from_slice(bytes).map_err(|_| Malformed)?;
        if !value.get().starts_with('[') {
            return Ok(Self::Single(Request::parse(value)));
        }
        let items: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(|_| Malformed)?;
        if items.is_empty() {
            return Ok(Self::Single(Err(BadRequest::invalid(Id(None)))));
        }
        Ok(Self::Batch(items.into_iter().map(Request::parse).collect()))
    }
}

impl Request {
    fn parse(value: &RawValue) -> Parsed {
        let envelope: Envelope<'_> =
            serde_json::from_str(value.get()).map_err(|_| BadRequest::invalid(Id(None)))?;
        let (Some(id), Some(method)) = (envelope.id(), envelope.method()) else {
            return Err(BadRequest::invalid(Id(None)));
        };
        match envelope.params() {
            Ok(params) => Ok(Self { id, method, params }),
            Err(error) => Err(BadRequest { id, error }),
        }
    }
}

impl BadRequest {
    fn invalid(id: Id) -> Self {
        Self {
            id,
            error: RpcError::invalid_request(),
        }
    }
}

impl Envelope<'_> {
    /// `None` if it is neither a string nor a number, nor absent.
    fn id(&self) -> Option<Id> {
        let Some(id) = self.id else {
            return Some(Id(None));
        };
        let first = id.get().bytes().next()?;
        let is_valid = first == b'"' || first == b'-' || first.is_ascii_digit();
        is_valid.then(|| Id(Some(id.get().into())))
    }

    /// `None` if it is no string, or if the version is wrong.
    fn method(&self) -> Option<String> {
        if let Some(version) = self.jsonrpc
            && text(version).as_deref() != Some("2.0")
        {
            return None;
        }
        text(self.method)
    }

    fn params(&self) -> Result<Option<Value>, RpcError> {
        let Some(params) = self.params else {
            return Ok(None);
        };
        if !params.get().starts_with(['{', '[']) {
            return Err(RpcError::invalid_request());
        }
        match serde_json::from_str(params.get()) {
            Ok(StrictValue(value)) => Ok(Some(value)),
            Err(error) => Err(RpcError::invalid_params(format!(
                "Invalid parameters: {error}"
            ))),
        }
    }
}

fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

impl Id {
    /// The reply to a request of this id. A success without an id is not told to anyone.
    pub(crate) fn reply(&self, result: &RpcResult) -> Option<String> {
        let id = self.0.as_deref().unwrap_or(NULL);
        match result {
            Ok(_) if self.0.is_none() => None,
            Ok(value) => Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{value}}}"#)),
            Err(error) => Some(format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{},"message":{}}}}}"#,
                error.code,
                Value::from(error.message.as_str()),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
