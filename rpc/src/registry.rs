use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::RpcError;
use crate::schema::{Method, Schema};

/// What a method answers.
pub type RpcResult = Result<Value, RpcError>;

type HandlerFuture = Pin<Box<dyn Future<Output = RpcResult>>>;
pub(crate) type Handler = Rc<dyn Fn(Params) -> HandlerFuture>;

/// The parameters of a call: checked against the schema, with its defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    members: Map<String, Value>,
}

impl Params {
    pub(crate) fn new(members: Map<String, Value>) -> Self {
        Self { members }
    }

    /// The members.
    #[must_use]
    pub fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// The parameters as a type of the handler's.
    ///
    /// # Errors
    /// -32602 if the type is narrower than the schema, and names what did not fit.
    pub fn decode<T: DeserializeOwned>(self) -> Result<T, RpcError> {
        serde_json::from_value(Value::Object(self.members))
            .map_err(|error| RpcError::invalid_params(format!("Invalid parameters: {error}")))
    }
}

/// Why the methods cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A handler for a method that the schema does not have.
    #[error("method {0} is not in the schema")]
    NotInSchema(String),
    /// Two handlers for one name, or a method named as another's alias.
    #[error("method {0} is registered twice")]
    Duplicate(String),
}

/// The methods of a program: each a name in the schema and a handler.
pub struct Registry {
    pub(crate) schema: &'static Schema,
    pub(crate) methods: Vec<Registered>,
    pub(crate) error: Option<RegisterError>,
}

pub(crate) struct Registered {
    pub(crate) method: &'static Method,
    pub(crate) handler: Handler,
}

impl Registry {
    /// No methods yet.
    #[must_use]
    pub fn new(schema: &'static Schema) -> Self {
        Self {
            schema,
            methods: Vec::new(),
            error: None,
        }
    }

    /// Serves the method `name`. Parameters, their defaults, the states in which it may be called
    /// and its alias are those of the schema. The handler runs on the control thread; it may take
    /// as long as it needs, but must not block.
    ///
    /// A name that the schema does not have, or that is taken, is reported by [`crate::Rpc::new`].
    pub fn register<F, R>(&mut self, name: &str, handler: F)
    where
        F: Fn(Params) -> R + 'static,
        R: Future<Output = RpcResult> + 'static,
    {
        let Some(method) = self.schema.method(name) else {
            self.fail(RegisterError::NotInSchema(name.into()));
            return;
        };
        if self.names().any(|taken| taken == name) {
            self.fail(RegisterError::Duplicate(name.into()));
            return;
        }
        let handler: Handler = Rc::new(move |params| Box::pin(handler(params)));
        self.methods.push(Registered { method, handler });
    }

    /// The names registered so far.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.methods.iter().map(|entry| entry.method.name.as_str())
    }

    fn fail(&mut self, error: RegisterError) {
        self.error.get_or_insert(error);
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
