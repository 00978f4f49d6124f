//! The paths that a controller is to have.

use bdev_rnbd::{ControlError, Initiator, InitiatorControl};
use fastrand::Rng;
use rnbd_base::Nanos;
use rnbd_fabric::Addr;

use crate::answer::Answer;
use crate::initiator::CONTROLLER;
use crate::mapping::AGAIN;
use crate::net;

type Asked<T> = Answer<Result<T, ControlError>>;

/// One path for each network that the host is on, whatever happens.
#[derive(Debug)]
pub(crate) struct Routes(Vec<Route>);

/// ```text
///          the controller is attached over it, or add
///  Wanted <─────────────────────────────────────────> Added(id)
///     ^                                                  │ remove
///     └───────────────────── Removing <─────────────────┘
/// ```
#[derive(Debug)]
enum Route {
    /// It is added when it is time to.
    Wanted(Nanos),
    /// The controller is being attached over it.
    First,
    Adding(Asked<u16>),
    Added(u16),
    Removing(u16, Asked<()>),
}

impl Routes {
    pub(crate) fn new(paths: u8) -> Self {
        Self((0..paths).map(|_| Route::Wanted(Nanos::ZERO)).collect())
    }

    /// A controller is being attached: over one of them, where it leads and where it comes from.
    pub(crate) fn begin(&mut self, nth: usize, rng: &mut Rng) -> (Addr, Option<Addr>) {
        let first = rng.usize(..self.0.len());
        for (path, route) in self.0.iter_mut().enumerate() {
            *route = match path == first {
                true => Route::First,
                false => Route::Wanted(Nanos::ZERO),
            };
        }
        (net::target(first), Some(net::client(nth, first)))
    }

    /// The controller is attached; its first path has the first number.
    pub(crate) fn attached(&mut self) {
        for route in &mut self.0 {
            if matches!(route, Route::First) {
                *route = Route::Added(0);
            }
        }
    }

    /// Adds what is wanted.
    pub(crate) fn drive(&mut self, initiator: &Initiator, nth: usize, now: Nanos) {
        for (path, route) in self.0.iter_mut().enumerate() {
            route.drive(initiator, (nth, path), now);
        }
    }

    /// Whether all are there, up or not.
    pub(crate) fn all_added(&self) -> bool {
        let mut routes = self.0.iter();
        routes.all(|route| matches!(route, Route::Added(_)))
    }

    pub(crate) fn next_action(&self) -> Option<Nanos> {
        let wanted = self.0.iter().filter_map(|route| match route {
            Route::Wanted(at) => Some(*at),
            _ => None,
        });
        wanted.filter(|at| *at > Nanos::ZERO).min()
    }

    /// The number of one of them.
    pub(crate) fn some_path(&self, rng: &mut Rng) -> Option<u16> {
        let added = self.0.iter().filter_map(|route| match route {
            Route::Added(id) => Some(*id),
            _ => None,
        });
        rng.choice(added.collect::<Vec<_>>())
    }

    /// Removes one.
    pub(crate) fn remove_some(&mut self, initiator: &Initiator, rng: &mut Rng) {
        let Some(wanted) = self.some_path(rng) else {
            return;
        };
        for route in &mut self.0 {
            if matches!(route, Route::Added(id) if *id == wanted) {
                let (answer, reply) = Answer::new();
                initiator.remove_path(CONTROLLER, wanted, reply);
                *route = Route::Removing(wanted, answer);
                return;
            }
        }
    }
}

impl Route {
    fn drive(&mut self, initiator: &Initiator, (nth, path): (usize, usize), now: Nanos) {
        match self {
            Self::Wanted(at) if *at <= now => {
                let (answer, reply) = Answer::new();
                let (to, from) = (net::target(path), net::client(nth, path));
                initiator.add_path(CONTROLLER, to, Some(from), reply);
                *self = Self::Adding(answer);
            }
            Self::Adding(answer) => match answer.take() {
                None => (),
                Some(Ok(id)) => *self = Self::Added(id),
                Some(Err(_)) => *self = Self::Wanted(now + AGAIN),
            },
            Self::Removing(id, answer) => match answer.take() {
                None => (),
                Some(Ok(())) => *self = Self::Wanted(now + AGAIN),
                Some(Err(_)) => *self = Self::Added(*id),
            },
            Self::Wanted(_) | Self::First | Self::Added(_) => (),
        }
    }
}
