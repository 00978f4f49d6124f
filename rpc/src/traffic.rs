use std::fmt;
use std::rc::Rc;

/// What a connection received or answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A request, or a batch of them, as the client sent it.
    Request,
    /// A reply, or those to a batch.
    Reply,
}

type Observer = dyn Fn(Traffic, &str);

/// Sees the text of everything that connections receive and answer, if anybody wants to.
#[derive(Clone, Default)]
pub(crate) struct Tap(Option<Rc<Observer>>);

impl Tap {
    pub(crate) fn new(observer: impl Fn(Traffic, &str) + 'static) -> Self {
        Self(Some(Rc::new(observer)))
    }

    pub(crate) fn show(&self, traffic: Traffic, text: &[u8]) {
        if let Some(observer) = &self.0 {
            observer(traffic, &String::from_utf8_lossy(text));
        }
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tap({})", self.0.is_some())
    }
}
