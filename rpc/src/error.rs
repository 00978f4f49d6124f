use rnbd_base::Errno;

/// An error reply of the RPC server (spdk-conventions.md A.3).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// One of JSON-RPC's codes, -1 for a wrong state, or a negative errno.
    pub code: i64,
    /// What a person reads.
    pub message: String,
}

impl RpcError {
    /// The method may not be called in the current state.
    pub const INVALID_STATE: i64 = -1;
    /// The envelope is not one of JSON-RPC.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method, or it is not allowed.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters do not fit the method's schema, or name something that is not there.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The method failed for a reason that no errno says.
    pub const INTERNAL: i64 = -32603;

    /// Any code and text.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// -32600.
    #[must_use]
    pub fn invalid_request() -> Self {
        Self::new(Self::INVALID_REQUEST, "Invalid request")
    }

    /// -32601.
    #[must_use]
    pub fn method_not_found() -> Self {
        Self::new(Self::METHOD_NOT_FOUND, "Method not found")
    }

    /// -32602 with a text that says what is wrong.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(Self::INVALID_PARAMS, message)
    }

    /// -32603 with a text that says what failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Self::INTERNAL, message)
    }

    /// `errno` as the code, with a text of its own.
    pub fn errno(errno: Errno, message: impl Into<String>) -> Self {
        Self::new(errno.negative().into(), message)
    }

    /// The same code with another text.
    #[must_use]
    pub fn with_text(self, message: impl Into<String>) -> Self {
        Self::new(self.code, message)
    }
}

impl From<Errno> for RpcError {
    /// The code is the negative errno and the text what `strerror` says, as SPDK has it.
    fn from(errno: Errno) -> Self {
        Self::errno(errno, errno.text())
    }
}
