use serde::de::DeserializeOwned;

use super::*;
use crate::testing::Rig;
use crate::{
    AioOptions, Bdev, DelayBdev, DelayOptions, ErrorBdev, ErrorOptions, MallocBdev, MallocOptions,
    NullBdev, NullOptions, UringBdev, UringOptions,
};

fn parse<T: DeserializeOwned>(params: &Map<String, Value>) -> T {
    serde_json::from_value(Value::Object(params.clone())).unwrap()
}

/// Makes a call as the RPC server does.
fn call(rig: &Rig, method: &str, params: &Map<String, Value>) {
    let (registry, memory) = (&rig.registry, &rig.memory);
    let created = match method {
        "bdev_malloc_create" => MallocBdev::create(registry, memory, parse(params)),
        "bdev_null_create" => NullBdev::create(registry, parse(params)),
        "bdev_uring_create" => UringBdev::create(registry, memory, parse(params)),
        "bdev_aio_create" => UringBdev::create_aio(registry, memory, parse(params)),
        "bdev_error_create" => ErrorBdev::create(registry, parse(params)),
        "bdev_delay_create" => DelayBdev::create(registry, parse(params)),
        _ => unreachable!("no module has {method}"),
    };
    created.unwrap();
}

fn one_of_each(rig: &Rig, image: &std::path::Path) {
    let calls = [
        (
            "bdev_malloc_create",
            r#"{"num_blocks":64,"block_size":512,"md_interleave":false}"#,
        ),
        (
            "bdev_malloc_create",
            r#"{"name":"M","num_blocks":8,"block_size":4096,"numa_id":-1}"#,
        ),
        (
            "bdev_null_create",
            r#"{"name":"N","num_blocks":64,"block_size":512}"#,
        ),
        ("bdev_error_create", r#"{"base_name":"M"}"#),
        (
            "bdev_delay_create",
            r#"{"name":"D","base_bdev_name":"EE_M","avg_read_latency":1,"p99_read_latency":3,
                "avg_write_latency":1,"p99_write_latency":3}"#,
        ),
    ];
    for (method, params) in calls {
        call(rig, method, &serde_json::from_str(params).unwrap());
    }
    let options = UringOptions {
        name: "U".to_owned(),
        filename: image.to_owned(),
        ..UringOptions::default()
    };
    call(rig, "bdev_uring_create", &to_params(&options));
    let options = AioOptions {
        name: "A".to_owned(),
        filename: image.to_owned(),
        block_size: Some(4096),
        ..AioOptions::default()
    };
    call(rig, "bdev_aio_create", &to_params(&options));
}

#[test]
fn saved_calls_make_the_same_devices_again() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 << 10).unwrap();
    let before = Rig::new();
    one_of_each(&before, image.path());
    let after = Rig::new();
    for info in before.registry.list() {
        for saved in info.bdev.config() {
            call(&after, saved.method, &saved.params);
        }
    }
    assert_eq!(after.saved(), before.saved());
    let described = |rig: &Rig| -> Vec<_> {
        rig.registry
            .list()
            .iter()
            .map(|info| info.to_json())
            .collect()
    };
    assert_eq!(described(&after), described(&before));
    assert_eq!(before.registry.list().len(), 7);
}

#[test]
fn unknown_parameters_are_refused() {
    let typo = r#"{"name":"N","num_blocks":64,"blocksize":512}"#;
    assert!(serde_json::from_str::<NullOptions>(typo).is_err());
    assert!(serde_json::from_str::<MallocOptions>(typo).is_err());
    assert!(serde_json::from_str::<UringOptions>(typo).is_err());
    assert!(serde_json::from_str::<AioOptions>(typo).is_err());
    assert!(serde_json::from_str::<ErrorOptions>(typo).is_err());
    assert!(serde_json::from_str::<DelayOptions>(typo).is_err());
}

#[test]
fn senseless_parameters_are_refused() {
    let rig = Rig::new();
    let good = NullOptions {
        name: "N".to_owned(),
        num_blocks: 64,
        block_size: 512,
        ..NullOptions::default()
    };
    let bad = [
        NullOptions {
            num_blocks: 0,
            ..good.clone()
        },
        NullOptions {
            num_blocks: u64::MAX,
            ..good.clone()
        },
        NullOptions {
            block_size: 0,
            ..good.clone()
        },
        NullOptions {
            block_size: 520,
            ..good.clone()
        },
        NullOptions {
            physical_block_size: Some(256),
            ..good.clone()
        },
        NullOptions {
            name: String::new(),
            ..good.clone()
        },
        NullOptions {
            name: "a\nb".to_owned(),
            ..good.clone()
        },
    ];
    for options in bad {
        let error = NullBdev::create(&rig.registry, options.clone()).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL, "{options:?}");
    }
    let with_metadata = NullOptions {
        md_size: 8,
        ..good.clone()
    };
    let error = NullBdev::new(with_metadata).unwrap_err();
    assert_eq!(error.errno(), Errno::OPNOTSUPP);
    assert!(error.to_string().contains("md_size"), "{error}");
    let bdev = NullBdev::new(good).unwrap();
    assert_eq!(bdev.resize(0).unwrap_err().errno(), Errno::INVAL);
    assert_eq!(bdev.geometry().num_blocks, 64);
}

#[test]
fn a_disk_larger_than_the_budget_is_refused_with_the_figures() {
    let rig = Rig::new();
    let memory = rnbd_mem::Memory::new(rnbd_mem::MemoryConfig {
        limit_bytes: 1 << 20,
        ..rnbd_mem::MemoryConfig::default()
    });
    let options = MallocOptions {
        num_blocks: 4096,
        block_size: 512,
        ..MallocOptions::default()
    };
    let error = MallocBdev::create(&rig.registry, &memory, options).unwrap_err();
    assert_eq!(error.errno(), Errno::NOMEM);
    assert!(
        error
            .to_string()
            .contains("bdev Malloc0 needs 2097152 bytes"),
        "{error}"
    );
}
