use std::sync::{Arc, Mutex, PoisonError};

/// Where an answer of the control plane will be.
#[derive(Debug)]
pub(crate) struct Answer<T>(Arc<Mutex<Option<T>>>);

impl<T: Send + 'static> Answer<T> {
    /// An answer to come, and the reply that brings it.
    pub(crate) fn new() -> (Self, Box<dyn FnOnce(T) + Send>) {
        let cell = Arc::new(Mutex::new(None));
        let to = Arc::clone(&cell);
        let reply = move |value| {
            *to.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        };
        (Self(cell), Box::new(reply))
    }

    /// The answer, once it is there.
    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
