//! How far two cores are from each other: nanoseconds in which a store of the one is seen by the other.
//!
//! `core_distance CORE CORE` prints the number. Cores that share a cache are some 40 ns apart, others
//! 100 to 250. A virtual machine's cores may be moved at any time, and all that two of them do together
//! changes its speed with that; so benchmarks ask before and after each run.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;

const ROUNDS: u32 = 20_000;

/// On a cache line that nothing else is on.
#[repr(align(128))]
struct Ball(AtomicU32);

static BALL: Ball = Ball(AtomicU32::new(0));

fn main() -> ExitCode {
    let cores: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    let &[near, far] = cores.as_slice() else {
        eprintln!("usage: core_distance CORE CORE");
        return ExitCode::FAILURE;
    };
    let other = thread::spawn(move || play(far, 1));
    let took = play(near, 0);
    match (took, other.join()) {
        (Some(took), Ok(Some(_))) => {
            let hop = took.as_nanos() / u128::from(ROUNDS) / 2;
            match writeln!(std::io::stdout(), "{hop}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        _ => {
            eprintln!("core_distance: no thread may run on core {near} or {far}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for its turn and passes on, so many times; every other turn is this player's.
fn play(core: usize, player: u32) -> Option<Duration> {
    let is_pinned = core_affinity::set_for_current(CoreId { id: core });
    let begun = Instant::now();
    for round in 0..ROUNDS {
        let turn = 2 * round + player;
        // Without a pause, which would be the larger part of what is measured.
        while BALL.0.load(Ordering::Acquire) != turn {}
        BALL.0.store(turn + 1, Ordering::Release);
    }
    is_pinned.then(|| begun.elapsed())
}
