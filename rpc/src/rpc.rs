use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::rc::Rc;

use serde::Deserialize;
use serde_json::Value;

use crate::dispatch::Dispatcher;
use crate::registry::{Params, RegisterError, Registry, RpcResult};
use crate::schema::{Method, Schema, State};
use crate::traffic::{Tap, Traffic};
use crate::{Handle, RpcError};

const ONLY_AFTER_INIT: &str = "Method may only be called after framework is initialized using \
    framework_start_init RPC.";
const ONLY_BEFORE_INIT: &str = "Method may only be called before framework is initialized. Use \
    --wait-for-rpc command line parameter and then issue this RPC before the \
    framework_start_init RPC.";

/// The methods of a program, ready to be called by connections and by the program itself. Cheap
/// to clone; bound to the control thread.
#[derive(Clone)]
pub struct Rpc {
    shared: Rc<Shared>,
}

struct Shared {
    handle: Handle,
    schema: &'static Schema,
    methods: Rc<Methods>,
    dispatcher: Dispatcher,
    tap: RefCell<Tap>,
}

/// What is needed to say which methods may be called.
struct Methods {
    /// In the order of registration.
    described: RefCell<Vec<&'static Method>>,
    state: Cell<State>,
    /// Every method if `None`.
    allowed: RefCell<Option<HashSet<String>>>,
    warned: RefCell<HashSet<String>>,
}

#[derive(Deserialize)]
struct GetMethods {
    current: bool,
    include_aliases: bool,
}

impl Rpc {
    /// Serves the methods of `registry` and `rpc_get_methods`. The state is [`State::Startup`].
    ///
    /// # Errors
    /// [`RegisterError`] for the first name that is not in the schema or is taken.
    pub fn new(handle: &Handle, mut registry: Registry) -> Result<Self, RegisterError> {
        let methods = Rc::new(Methods {
            described: RefCell::default(),
            state: Cell::new(State::Startup),
            allowed: RefCell::default(),
            warned: RefCell::default(),
        });
        let listed = Rc::clone(&methods);
        registry.register("rpc_get_methods", move |params: Params| {
            let listed = Rc::clone(&listed);
            async move { Ok(listed.list(&params.decode()?)) }
        });
        if let Some(error) = registry.error {
            return Err(error);
        }
        methods
            .described
            .replace(registry.methods.iter().map(|entry| entry.method).collect());
        let shared = Shared {
            handle: handle.clone(),
            schema: registry.schema,
            methods,
            dispatcher: Dispatcher::new(&registry.methods),
            tap: RefCell::default(),
        };
        Ok(Self {
            shared: Rc::new(shared),
        })
    }

    /// The loop in which the methods run.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    /// The state that decides which methods may be called.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.methods.state.get()
    }

    /// Enters another state.
    pub fn set_state(&self, state: State) {
        self.shared.methods.state.set(state);
    }

    /// Hides all methods but those of `names`, from connections and from the program itself. All
    /// are allowed without this. Names that no method has are kept for nothing.
    pub fn set_allowed(&self, names: impl IntoIterator<Item = String>) {
        let allowed = names.into_iter().collect();
        self.shared.methods.allowed.replace(Some(allowed));
    }

    /// Shows `observer` what connections receive and answer, of those that are made from now on.
    pub fn observe(&self, observer: impl Fn(Traffic, &str) + 'static) {
        self.shared.tap.replace(Tap::new(observer));
    }

    pub(crate) fn tap(&self) -> Tap {
        self.shared.tap.borrow().clone()
    }

    /// When `method` may be called; `None` if there is no such method or it is not allowed.
    #[must_use]
    pub fn states_of(&self, method: &str) -> Option<&'static [State]> {
        let method = self.shared.methods.find(method)?;
        Some(&method.states)
    }

    /// Calls a method as a connection would.
    ///
    /// # Errors
    /// The error that a connection would be answered.
    pub async fn call(&self, method: &str, params: Option<Value>) -> RpcResult {
        self.start(method, params)?.await
    }

    /// Checks a call and starts it; the future waits for its answer. Dropping that does not stop
    /// the method.
    pub(crate) fn start(
        &self,
        name: &str,
        params: Option<Value>,
    ) -> Result<impl Future<Output = RpcResult> + use<>, RpcError> {
        let shared = &self.shared;
        let method = shared.methods.callable(name)?;
        let params = shared.schema.validate(method, params)?;
        let params = Params::new(params);
        Ok(shared.dispatcher.start(&shared.handle, name, params))
    }
}

impl Methods {
    fn find(&self, name: &str) -> Option<&'static Method> {
        let described = self.described.borrow();
        let is_named = |method: &&&Method| method.names().any(|known| known == name);
        let method = described.iter().find(is_named)?;
        self.is_allowed(name).then_some(*method)
    }

    fn is_allowed(&self, name: &str) -> bool {
        let allowed = self.allowed.borrow();
        allowed.as_ref().is_none_or(|names| names.contains(name))
    }

    fn callable(&self, name: &str) -> Result<&'static Method, RpcError> {
        let method = self.find(name).ok_or_else(RpcError::method_not_found)?;
        let state = self.state.get();
        if !method.states.contains(&state) {
            let text = match state {
                State::Startup => ONLY_AFTER_INIT,
                State::Runtime => ONLY_BEFORE_INIT,
            };
            return Err(RpcError::new(RpcError::INVALID_STATE, text));
        }
        if method.name != name && self.warned.borrow_mut().insert(name.to_owned()) {
            log::warn!("RPC method {name} is deprecated: use {}", method.name);
        }
        Ok(method)
    }

    /// Names for `rpc_get_methods`, the one registered last first, as SPDK lists them.
    fn list(&self, wanted: &GetMethods) -> Value {
        let state = self.state.get();
        let described = self.described.borrow();
        let methods = described.iter().rev();
        methods
            .filter(|method| !wanted.current || method.states.contains(&state))
            .flat_map(|method| {
                let count = if wanted.include_aliases { 2 } else { 1 };
                method.names().take(count)
            })
            .filter(|name| self.is_allowed(name))
            .collect()
    }
}

impl Method {
    /// The name, and then the alias if there is one.
    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.alias.as_deref())
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods = self.shared.methods.described.borrow().len();
        write!(f, "Rpc({methods} methods, {:?})", self.state())
    }
}
