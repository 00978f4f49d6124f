//! The control side in another program.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rnbd_base::{Errno, Nanos, Poll};
use rnbd_bdev::Registry;
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_reactor::{HostedReactor, Reactors};

use crate::bdev_source::BdevSource;
use crate::hosted::Hosted;

#[derive(Debug)]
struct NoSource;

impl BdevSource for NoSource {
    fn provide(&self, _name: &str, _write: bool) -> Result<(), (Errno, String)> {
        Ok(())
    }

    fn release(&self, _name: &str) {}
}

fn hosted() -> (Hosted, Vec<HostedReactor>) {
    let (reactors, polled) = Reactors::hosted(&[0]).unwrap();
    let memory = Memory::new(MemoryConfig::default());
    let hosted = Hosted::new(reactors, memory, |_: &Registry| Box::new(NoSource)).unwrap();
    (hosted, polled)
}

/// Applies the file, and drives all until that has ended.
fn configure(hosted: &Hosted, polled: &mut [HostedReactor], file: &Path) -> anyhow::Result<()> {
    let result = Rc::new(RefCell::new(None));
    let slot = Rc::clone(&result);
    hosted.configure(file, move |result| *slot.borrow_mut() = Some(result));
    loop {
        hosted.turn();
        for reactor in &mut *polled {
            reactor.poll(Nanos::ZERO);
        }
        if let Some(result) = result.borrow_mut().take() {
            return result;
        }
    }
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rnbd-hosted-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_configuration_is_applied_in_both_states() {
    let (hosted, mut polled) = hosted();
    let path = file(
        "good.json",
        r#"{ "subsystems": [
            { "subsystem": "elsewhere", "config": [ { "method": "elsewhere_start" } ] },
            { "subsystem": "bdev", "config": [
                { "method": "bdev_set_options", "params": { "bdev_auto_examine": true } },
                { "method": "bdev_malloc_create",
                  "params": { "name": "ram", "num_blocks": 64, "block_size": 512 } } ] }
        ] }"#,
    );
    let result = configure(&hosted, &mut polled, &path);
    std::fs::remove_file(&path).unwrap();
    result.unwrap();
    assert!(hosted.bdevs().get("ram").is_some());
}

#[test]
fn a_configuration_that_fails_says_where() {
    let (hosted, mut polled) = hosted();
    let mut error = |path: &Path| {
        let result = configure(&hosted, &mut polled, path);
        format!("{:#}", result.unwrap_err())
    };
    let text = error(Path::new("/nowhere/rnbd.json"));
    assert!(text.contains("/nowhere/rnbd.json"), "{text}");
    let path = file(
        "bad.json",
        r#"{ "subsystems": [ { "subsystem": "bdev", "config": [
            { "method": "bdev_malloc_create", "params": { "name": "ram" } } ] } ] }"#,
    );
    let text = error(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(
        text.contains("subsystem bdev: bdev_malloc_create failed"),
        "{text}"
    );
}
