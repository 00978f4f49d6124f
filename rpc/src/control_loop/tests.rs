use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::task::Waker;

use futures_channel::oneshot;

use super::*;

#[test]
fn tasks_share_state_and_run_until_the_main_future_is_done() {
    let control = ControlLoop::new().unwrap();
    let handle = control.handle();
    let count = Rc::new(Cell::new(0));
    for number in 1..=10 {
        let count = Rc::clone(&count);
        let sleeping = handle.sleep(Duration::from_millis(number));
        handle.spawn(async move {
            sleeping.await;
            count.set(count.get() + 1);
        });
    }
    let seen = Rc::clone(&count);
    control.run(async move {
        while seen.get() < 10 {
            handle.sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(count.get(), 10);
}

#[test]
fn another_thread_wakes_a_sleeping_loop() {
    let control = ControlLoop::new().unwrap();
    for number in 0..1000 {
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::spawn(move || sender.send(number));
        assert_eq!(control.run(receiver), Ok(number));
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn a_task_that_never_rests_does_not_keep_others_from_their_events() {
    let control = ControlLoop::new().unwrap();
    let handle = control.handle();
    handle.spawn(std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        Poll::Pending
    }));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let watch = handle.watch(ours).unwrap();
    theirs.write_all(b"x").unwrap();
    control.run(async {
        handle.sleep(Duration::from_millis(1)).await;
        watch.ready(Interest::READ).await.unwrap();
    });
}

#[test]
fn a_sleep_that_is_given_up_leaves_no_timer() {
    let control = ControlLoop::new().unwrap();
    let handle = control.handle();
    let mut sleep = Box::pin(handle.sleep(Duration::from_secs(3600)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(sleep.as_mut().poll(&mut context).is_pending());
    assert!(handle.shared.timers.until_next(Instant::now()).is_some());
    drop(sleep);
    assert!(handle.shared.timers.until_next(Instant::now()).is_none());
}

#[test]
fn signals_arrive_as_events() {
    let control = ControlLoop::new().unwrap();
    let mut signals = control.handle().signals(&[10, 12]).unwrap();
    for signal in [10, 12, 10] {
        signal_hook::low_level::raise(signal).unwrap();
        assert_eq!(control.run(signals.next()), signal);
    }
    let uncatchable = control.handle().signals(&[9]).unwrap_err();
    assert_eq!(uncatchable.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_dropped_loop_drops_its_tasks() {
    let control = ControlLoop::new().unwrap();
    let handle = control.handle();
    let held = Rc::new(());
    let (in_task, own_handle) = (Rc::clone(&held), handle.clone());
    handle.spawn(async move {
        own_handle.sleep(Duration::from_secs(3600)).await;
        drop(in_task);
    });
    control.run(handle.sleep(Duration::from_millis(1)));
    assert_eq!(Rc::strong_count(&held), 2);
    drop(control);
    assert_eq!(Rc::strong_count(&held), 1);
}

#[test]
fn a_turn_does_what_is_ready_and_does_not_wait() {
    let control = ControlLoop::new().unwrap();
    let (sender, receiver) = futures_channel::oneshot::channel();
    let done = Rc::new(Cell::new(false));
    let in_task = Rc::clone(&done);
    control.handle().spawn(async move {
        receiver.await.unwrap();
        in_task.set(true);
    });
    assert!(control.turn());
    assert!(!control.turn());
    // From another thread, as a reactor does.
    std::thread::spawn(move || sender.send(()).unwrap())
        .join()
        .unwrap();
    assert!(control.turn());
    assert!(done.get());
}
