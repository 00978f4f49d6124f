//! What threads of a prepared process allocate lies close together, as old versions of librdmacm
//! need it of their devices. A program of its own, because it has to come before all threads.

use rnbd_verbs::VerbsHost;

const THREADS: usize = 8;
/// Distances that librdmacm can tell the sign of.
const REACH: usize = 1 << 31;

fn main() {
    VerbsHost::prepare_process();
    let mut places = vec![allocate()];
    let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(allocate)).collect();
    for thread in threads {
        places.push(thread.join().expect("it only allocates"));
    }
    let (low, high) = (places.iter().min(), places.iter().max());
    let apart = high.zip(low).map(|(high, low)| high - low);
    assert!(apart.is_some_and(|apart| apart < REACH), "{places:x?}");
}

/// As much as libibverbs does for a device; where that is.
fn allocate() -> usize {
    let device = vec![0_u8; 1024].leak();
    device.as_ptr().addr()
}
