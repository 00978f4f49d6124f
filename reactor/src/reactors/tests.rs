use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use rnbd_base::{Progress, mailbox};
use rustix::event::{EventfdFlags, eventfd};

use super::*;

const ADAPTIVE: Mode = Mode::Adaptive { idle_us: 50 };

fn start(mode: Mode) -> Reactors {
    let cores = CoreMask::available().unwrap();
    Reactors::start(&ReactorConfig { cores, mode }).unwrap()
}

fn first(reactors: &Reactors) -> CoreIndex {
    reactors.cores().next().unwrap()
}

fn reply<T: Send + 'static>() -> (Reply<T>, Receiver<T>) {
    let (sender, receiver) = channel();
    (Box::new(move |value| drop(sender.send(value))), receiver)
}

fn snapshot(reactors: &Reactors, core: CoreIndex) -> ReactorSnapshot {
    let (reply, answer) = reply();
    reactors.snapshot(core, reply);
    answer.recv().unwrap()
}

/// Calls a function in every poll.
struct Do<F>(F);

impl<F: FnMut(Nanos) -> Progress + Send> Poll for Do<F> {
    fn poll(&mut self, now: Nanos) -> Progress {
        (self.0)(now)
    }
}

fn poller(function: impl FnMut(Nanos) -> Progress + Send + 'static) -> Box<dyn Poll> {
    Box::new(Do(function))
}

/// Says when it is dropped, and on which OS thread.
struct Dropped(&'static str, Sender<(&'static str, Option<String>)>);

impl Poll for Dropped {
    fn poll(&mut self, _now: Nanos) -> Progress {
        Progress::Idle
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let thread = std::thread::current().name().map(str::to_owned);
        self.1.send((self.0, thread)).unwrap();
    }
}

#[test]
fn every_reactor_runs_on_its_own_core_only() {
    let reactors = start(Mode::Busy);
    for core in reactors.cores() {
        let (reply, answer) = reply();
        let ask = Box::new(move |_| reply(CoreMask::available().unwrap()));
        reactors.run_on(core, ask);
        let lcore = reactors.lcore(core);
        assert_eq!(answer.recv().unwrap(), CoreMask::single(lcore));
        let snapshot = snapshot(&reactors, core);
        assert_eq!((snapshot.core, snapshot.lcore), (core, lcore));
        assert_ne!(snapshot.tid, 0);
    }
}

#[test]
fn a_core_that_is_not_there_is_named() {
    let config = ReactorConfig {
        cores: CoreMask::single(1023),
        mode: Mode::Busy,
    };
    let error = Reactors::start(&config).unwrap_err().to_string();
    assert!(error.starts_with("core 1023 is not available"), "{error}");
}

#[test]
fn commands_take_effect_in_the_order_given_even_when_the_queue_overflows() {
    let reactors = start(ADAPTIVE);
    let core = first(&reactors);
    let (sender, receiver) = channel();
    let count = 3 * COMMANDS_MAX;
    for number in 0..count {
        let sender = sender.clone();
        reactors.run_on(core, Box::new(move |_| sender.send(number).unwrap()));
    }
    drop(sender);
    assert!(receiver.iter().eq(0..count));
}

#[test]
fn a_poller_is_polled_until_it_is_removed_and_then_given_back() {
    let reactors = start(ADAPTIVE);
    let thread = reactors.create_thread(first(&reactors), "worker");
    let (dropped, drops) = channel();
    let id = reactors.add_poller(thread, "one", None, Box::new(Dropped("one", dropped)));
    let (reply_now, answer) = reply();
    reactors.remove_poller(id, reply_now);
    let given_back = answer.recv().unwrap().unwrap();
    assert!(drops.try_recv().is_err());
    drop(given_back);
    assert_eq!(drops.recv().unwrap().0, "one");

    let (reply_again, answer) = reply();
    reactors.remove_poller(id, reply_again);
    assert!(answer.recv().unwrap().is_none());
    assert!(
        snapshot(&reactors, thread.core()).threads[0]
            .pollers
            .is_empty()
    );
}

#[test]
fn pollers_come_and_go_while_others_are_polled() {
    let reactors = start(ADAPTIVE);
    let core = first(&reactors);
    let thread = reactors.create_thread(core, "worker");
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let steady = reactors.add_poller(
        thread,
        "steady",
        None,
        poller(move |now| {
            let mut seen = seen.lock().unwrap();
            if seen.len() < 10_000 {
                seen.push(now);
            }
            Progress::Busy
        }),
    );
    for _ in 0..500 {
        let (polled, polls) = channel();
        let mut polled = Some(polled);
        let id = reactors.add_poller(
            thread,
            "passing",
            None,
            poller(move |_| {
                Progress::from_work(polled.take().is_some_and(|sender| sender.send(()).is_ok()))
            }),
        );
        polls.recv().unwrap();
        let (reply, answer) = reply();
        reactors.remove_poller(id, reply);
        assert!(answer.recv().unwrap().is_some());
    }
    let pollers = snapshot(&reactors, core).threads.remove(0).pollers;
    assert_eq!(pollers.len(), 1);
    assert_eq!(pollers[0].id, steady.get());
    assert!(times.lock().unwrap().is_sorted());
}

#[test]
fn a_destroyed_thread_gives_back_all_its_pollers_newest_first() {
    let reactors = start(Mode::Busy);
    let thread = reactors.create_thread(first(&reactors), "worker");
    let (dropped, drops) = channel();
    for name in ["first", "second"] {
        reactors.add_poller(thread, name, None, Box::new(Dropped(name, dropped.clone())));
    }
    let (reply, answer) = reply();
    reactors.destroy_thread(thread, reply);
    for poller in answer.recv().unwrap() {
        drop(poller);
    }
    let names: Vec<&str> = drops.try_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["second", "first"]);
    assert!(snapshot(&reactors, thread.core()).threads.is_empty());
}

#[test]
fn stopping_drops_the_pollers_on_their_reactor_newest_first() {
    let reactors = start(ADAPTIVE);
    let core = first(&reactors);
    let on = Some(format!("reactor_{}", reactors.lcore(core)));
    let (dropped, drops) = channel();
    for (thread, pollers) in [("a", ["a1", "a2"]), ("b", ["b1", "b2"])] {
        let thread = reactors.create_thread(core, thread);
        for name in pollers {
            reactors.add_poller(thread, name, None, Box::new(Dropped(name, dropped.clone())));
        }
    }
    drop(dropped);
    reactors.stop();
    let order: Vec<_> = drops.iter().collect();
    let expected = ["b2", "b1", "a2", "a1"].map(|name| (name, on.clone()));
    assert_eq!(order, expected);
}

#[test]
fn polls_are_counted_exactly_and_time_is_busy_or_idle() {
    let reactors = start(Mode::Busy);
    let core = first(&reactors);
    let thread = reactors.create_thread(core, "worker");
    let (sender, receiver) = channel();
    let mut count = 0;
    reactors.add_poller(
        thread,
        "counter",
        None,
        poller(move |_| {
            count += 1;
            if count == 300 {
                sender.send(()).unwrap();
            }
            Progress::from_work(count <= 300)
        }),
    );
    let hourly = Nanos::from_secs(3600);
    reactors.add_poller(thread, "hourly", Some(hourly), poller(|_| Progress::Busy));
    receiver.recv().unwrap();
    let reactor = snapshot(&reactors, core);
    let [worker] = &reactor.threads[..] else {
        panic!("{reactor:?}");
    };
    assert_eq!((worker.id, &*worker.name), (thread.get(), "worker"));
    assert_eq!(worker.cpumask, CoreMask::single(reactor.lcore).to_hex());
    let [counter, hourly_poller] = &worker.pollers[..] else {
        panic!("{worker:?}");
    };
    assert_eq!(counter.busy_count, 300);
    assert!(counter.run_count >= 300);
    assert_eq!((hourly_poller.run_count, counter.period_ticks), (0, None));
    let period = reactors.clock().to_ticks(hourly);
    assert_eq!(hourly_poller.period_ticks, Some(period));
    assert!(worker.busy > 0 && worker.busy + worker.idle <= worker.elapsed);
    assert!(reactor.busy >= worker.busy && reactor.idle >= worker.idle);
}

#[test]
fn a_timed_poller_keeps_its_period_in_both_modes() {
    for mode in [Mode::Busy, ADAPTIVE] {
        let reactors = start(mode);
        let thread = reactors.create_thread(first(&reactors), "timers");
        let (sender, receiver) = channel();
        let period = Nanos::from_micros(500);
        let tick = move |now| {
            let _ = sender.send(now);
            Progress::Idle
        };
        reactors.add_poller(thread, "tick", Some(period), poller(tick));
        let times: Vec<Nanos> = receiver.iter().take(20).collect();
        assert!(
            times.windows(2).all(|pair| pair[1] - pair[0] >= period),
            "{times:?}"
        );
    }
}

/// Is due once, at its deadline, and has nothing else to do.
struct Alarm {
    deadline: Option<Nanos>,
    rang: Sender<(Nanos, Nanos)>,
}

impl Poll for Alarm {
    fn poll(&mut self, now: Nanos) -> Progress {
        match self.deadline {
            Some(deadline) if now >= deadline => {
                self.deadline = None;
                self.rang.send((deadline, now)).unwrap();
                Progress::Busy
            }
            _ => Progress::Idle,
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.deadline
    }
}

#[test]
fn an_idle_adaptive_reactor_sleeps_until_a_deadline_and_a_busy_one_never() {
    for (mode, sleeps) in [(ADAPTIVE, true), (Mode::Busy, false)] {
        let reactors = start(mode);
        let core = first(&reactors);
        let thread = reactors.create_thread(core, "alarm");
        let (rang, rings) = channel();
        let deadline = Some(reactors.clock().now() + Nanos::from_millis(20));
        reactors.add_poller(thread, "alarm", None, Box::new(Alarm { deadline, rang }));
        let (due, now) = rings.recv().unwrap();
        assert!(now >= due);
        let snapshot = snapshot(&reactors, core);
        assert_eq!(
            (snapshot.sleeps > 0, snapshot.in_interrupt),
            (sleeps, sleeps)
        );
        assert!(snapshot.threads[0].pollers[0].run_count > 0);
    }
}

/// Work that only a descriptor announces.
struct Descriptor {
    event: Arc<OwnedFd>,
    seen: Sender<()>,
}

impl Poll for Descriptor {
    fn poll(&mut self, _now: Nanos) -> Progress {
        let readable = rustix::io::read(&*self.event, &mut [0; 8]).is_ok();
        if readable {
            let _ = self.seen.send(());
        }
        Progress::from_work(readable)
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        fds.push(self.event.as_raw_fd());
        true
    }
}

#[test]
fn a_descriptor_wakes_a_sleeping_reactor() {
    let reactors = start(Mode::Adaptive { idle_us: 0 });
    let thread = reactors.create_thread(first(&reactors), "descriptor");
    let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let (seen, sights) = channel();
    let descriptor = Descriptor {
        event: Arc::clone(&event),
        seen,
    };
    reactors.add_poller(thread, "descriptor", None, Box::new(descriptor));
    for _ in 0..2_000 {
        rustix::io::write(&*event, &1u64.to_ne_bytes()).unwrap();
        sights.recv().unwrap();
    }
}

/// Two reactors and the control thread send to each other through mailboxes while all of them
/// fall asleep whenever they can. A lost wake-up would hang the test.
#[test]
fn messages_reach_reactors_that_keep_falling_asleep() {
    const ROUNDS: u32 = 20_000;
    let reactors = start(Mode::Adaptive { idle_us: 0 });
    let cores: Vec<CoreIndex> = reactors.cores().collect();
    let (there, back) = (cores[0], cores[cores.len() - 1]);
    let (to_there, mut at_there) = mailbox::<u32>(8, reactors.waker(there));
    let (to_back, mut at_back) = mailbox::<u32>(8, reactors.waker(back));
    let (done, finished) = channel();
    let forward = poller(move |_| {
        let message = at_there.take();
        if let Some(number) = message {
            to_back.send(number).unwrap();
        }
        Progress::from_work(message.is_some())
    });
    let again = to_there.clone();
    let backward = poller(move |_| {
        let message = at_back.take();
        match message {
            Some(ROUNDS) => done.send(()).unwrap(),
            Some(number) => again.send(number + 1).unwrap(),
            None => {}
        }
        Progress::from_work(message.is_some())
    });
    let thread = reactors.create_thread(there, "there");
    reactors.add_poller(thread, "forward", None, forward);
    let thread = reactors.create_thread(back, "back");
    reactors.add_poller(thread, "backward", None, backward);
    to_there.send(0).unwrap();
    finished.recv().unwrap();
}

/// Work that nothing announces.
struct Restless;

impl Poll for Restless {
    fn poll(&mut self, _now: Nanos) -> Progress {
        Progress::Idle
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        false
    }
}

#[test]
fn a_poller_that_objects_keeps_the_reactor_awake() {
    let reactors = start(Mode::Adaptive { idle_us: 0 });
    let core = first(&reactors);
    let thread = reactors.create_thread(core, "restless");
    reactors.add_poller(thread, "restless", None, Box::new(Restless));
    let before = snapshot(&reactors, core).sleeps;
    while snapshot(&reactors, core).threads[0].pollers[0].run_count < 10_000 {}
    assert_eq!(snapshot(&reactors, core).sleeps, before);
}

#[test]
fn a_reactor_that_panicked_drops_commands_instead_of_hanging_the_sender() {
    let reactors = start(Mode::Busy);
    let core = first(&reactors);
    reactors.run_on(core, Box::new(|_| panic!("as the test wants")));
    for _ in 0..2 * COMMANDS_MAX {
        reactors.run_on(core, Box::new(|_| {}));
    }
    let (reply, answer) = reply();
    reactors.snapshot(core, reply);
    drop(reactors);
    assert!(answer.recv().is_err());
}

#[test]
fn a_hosted_reactor_does_everything_in_the_hosts_polls_and_ends_when_told() {
    let (reactors, mut hosted) = Reactors::hosted(&[0, 1]).unwrap();
    let core = first(&reactors);
    let (sender, dropped) = channel();
    let (count, polls) = channel();
    let thread = reactors.create_thread(core, "hosted");
    let counts = poller(move |_| Progress::from_work(count.send(()).is_ok()));
    reactors.add_poller(thread, "counts", None, counts);
    reactors.add_poller(thread, "dropped", None, Box::new(Dropped("first", sender)));
    assert!(polls.try_recv().is_err());
    assert_eq!(hosted[0].poll(Nanos::ZERO), Progress::Busy);
    assert_eq!(hosted[1].poll(Nanos::ZERO), Progress::Idle);
    assert_eq!(polls.try_iter().count(), 1);
    // Another OS thread may go on with it.
    let mut moved = hosted.remove(0);
    let moved = std::thread::spawn(move || {
        moved.poll(Nanos::ZERO);
        moved
    });
    let mut moved = moved.join().unwrap();
    assert_eq!(polls.try_iter().count(), 1);
    reactors.stop();
    moved.poll(Nanos::ZERO);
    assert_eq!(dropped.try_iter().count(), 1);
    assert_eq!(moved.poll(Nanos::ZERO), Progress::Idle);
}

#[test]
fn commands_to_a_hosted_reactor_that_has_ended_are_dropped_with_their_replies() {
    let (reactors, hosted) = Reactors::hosted(&[0]).unwrap();
    drop(hosted);
    let (reply, answer) = reply();
    reactors.snapshot(first(&reactors), reply);
    assert!(answer.recv().is_err());
}
