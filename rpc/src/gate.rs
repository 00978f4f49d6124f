use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Waker};

/// Clients beyond these wait until one leaves.
const CONNECTIONS_MAX: usize = 64;

/// What all connections of a server go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum GateState {
    #[default]
    Open,
    /// Connections are neither accepted nor read.
    Paused,
    /// The server is gone.
    Ended,
}

#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Cell<GateState>,
    last_ticket: Cell<u64>,
    /// Whom to wake when the state changes, by ticket.
    inside: RefCell<BTreeMap<u64, Option<Waker>>>,
}

/// The presence of one connection, or of the task that accepts them.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Rc<Gate>,
    number: u64,
}

impl Gate {
    pub(crate) fn enter(self: &Rc<Self>) -> Ticket {
        let number = self.last_ticket.get() + 1;
        self.last_ticket.set(number);
        self.inside.borrow_mut().insert(number, None);
        Ticket {
            gate: Rc::clone(self),
            number,
        }
    }

    pub(crate) fn set_state(&self, state: GateState) {
        self.state.set(state);
        self.wake_all();
    }

    fn wake_all(&self) {
        let mut inside = self.inside.borrow_mut();
        for waker in inside.values_mut().filter_map(Option::take) {
            waker.wake();
        }
    }
}

impl Ticket {
    /// The state. The task is woken when it changes, and when somebody leaves.
    pub(crate) fn state(&self, context: &mut Context<'_>) -> GateState {
        let mut inside = self.gate.inside.borrow_mut();
        inside.insert(self.number, Some(context.waker().clone()));
        self.gate.state.get()
    }

    /// Whether no more connections may come in; the caller itself does not count.
    pub(crate) fn is_full(&self) -> bool {
        self.gate.inside.borrow().len() > CONNECTIONS_MAX
    }

    /// Lets another one in.
    pub(crate) fn admit(&self) -> Self {
        self.gate.enter()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gate.inside.borrow_mut().remove(&self.number);
        self.gate.wake_all();
    }
}
