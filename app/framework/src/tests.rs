//! The methods as a program serves them, without its socket.

mod bdev;
mod gids;
mod hosted;
mod metrics;
mod multipath;
mod target;

use std::future::Future;
use std::rc::Rc;

use bdev_rnbd::NotificationKind;
use clap::Parser;
use rnbd_proto::target::Notification;
use rnbd_rpc::{ControlLoop, Registry, Rpc, RpcError, Schema, State};
use serde_json::{Value, json};

use crate::config::Config;
use crate::methods;
use crate::options::Options;
use crate::subsystem::SUBSYSTEMS;
use crate::system::System;

#[derive(Parser)]
#[command(version)]
struct Program {
    #[command(flatten)]
    options: Options,
}

/// A program in state RUNTIME on core 0.
struct Fixture {
    control: ControlLoop,
    system: Rc<System>,
    rpc: Rpc,
}

impl Fixture {
    fn new() -> Self {
        let arguments = [
            "program",
            "--disable-cpumask-locks",
            "--no-huge",
            "--reactor-mode=adaptive",
        ];
        let options = Program::parse_from(arguments).options;
        let control = ControlLoop::new().unwrap();
        let system = Rc::new(System::new(&options, control.handle()).unwrap());
        let mut registry = Registry::new(Schema::builtin());
        methods::register(&mut registry, &system);
        let rpc = Rpc::new(&control.handle(), registry).unwrap();
        Self {
            control,
            system,
            rpc,
        }
    }

    fn running() -> Self {
        let fixture = Self::new();
        fixture.rpc.set_state(State::Runtime);
        fixture
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.control.run(future)
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let result = self.run(self.rpc.call(method, Some(params)));
        result.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn ask(&self, method: &str) -> Value {
        self.run(self.rpc.call(method, None))
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn fail(&self, method: &str, params: Value) -> RpcError {
        self.run(self.rpc.call(method, Some(params)))
            .expect_err(method)
    }

    fn config(&self) -> Value {
        let of = |subsystem: &crate::subsystem::Subsystem| {
            json!({
                "subsystem": subsystem.name,
                "config": self.call("framework_get_config", json!({ "name": subsystem.name })),
            })
        };
        json!({ "subsystems": SUBSYSTEMS.iter().map(of).collect::<Vec<_>>() })
    }

    /// Makes a target with one disk; returns its port.
    fn listen(&self) -> String {
        self.call(
            "bdev_malloc_create",
            json!({"name": "M0", "num_blocks": 2048, "block_size": 512}),
        );
        self.call(
            "rtrs_create_transport",
            json!({"trtype": "TCP", "sess_queue_depth": 16}),
        );
        self.call(
            "rnbd_create_export",
            json!({"device_path": "disk", "bdev_name": "M0"}),
        );
        let address = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "0"});
        self.call("rtrs_add_listener", json!({ "listen_address": address }));
        let listeners = self.ask("rtrs_get_listeners");
        listeners[0]["listen_address"]["trsvcid"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Makes a target that is open to everybody, and attaches to it.
    fn connect(&self) {
        let port = self.listen();
        let allow = json!({"device_path": "disk", "allow_any_host": true});
        self.call("rnbd_export_allow_any_host", allow);
        self.attach(&port, "disk").unwrap();
    }

    fn attach(&self, port: &str, device: &str) -> Result<Value, RpcError> {
        let params = json!({
            "name": "c0", "sessname": "client", "traddr": "127.0.0.1", "trsvcid": port,
            "devices": [{ "device_path": device, "bdev_name": "R0" }],
        });
        self.run(self.rpc.call("bdev_rnbd_attach_controller", Some(params)))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.run(self.system.shut_down());
    }
}

#[test]
fn every_method_of_the_schema_is_served_and_no_other() {
    let fixture = Fixture::new();
    let all = fixture.ask("rpc_get_methods");
    let names = all.as_array().unwrap().iter().filter_map(Value::as_str);
    let checked = Schema::builtin().check_registered("rnbd_tgt", names);
    assert_eq!(checked, Ok(()));
}

#[test]
fn a_program_is_target_and_initiator_of_itself() {
    let fixture = Fixture::running();
    let port = fixture.listen();
    let allow = json!({"device_path": "disk", "host": "cli*"});
    fixture.call("rnbd_export_add_host", allow);
    assert_eq!(fixture.attach(&port, "disk").unwrap(), json!(["R0"]));

    let bdevs = fixture.call("bdev_get_bdevs", json!({"name": "R0"}));
    assert_eq!(
        (&bdevs[0]["num_blocks"], &bdevs[0]["block_size"]),
        (&json!(2048), &json!(512))
    );
    let sessions = fixture.ask("rtrs_get_sessions");
    assert_eq!(sessions[0]["sessname"], "client");
    let exports = fixture.ask("rnbd_get_exports");
    assert_eq!(exports[0]["opens"][0]["sessname"], "client");
    let controllers = fixture.ask("bdev_rnbd_get_controllers");
    assert_eq!(controllers[0]["bdevs"], json!(["R0"]));

    let busy = fixture.fail("rnbd_delete_export", json!({"device_path": "disk"}));
    assert_eq!(busy.code, -16);
    fixture.call("bdev_rnbd_detach_controller", json!({"name": "c0"}));
    assert_eq!(
        fixture.fail("bdev_get_bdevs", json!({"name": "R0"})).code,
        -19
    );
}

#[test]
fn paths_are_detached_by_their_addresses_and_the_controller_with_the_last() {
    let fixture = Fixture::running();
    fixture.connect();
    let listeners = fixture.ask("rtrs_get_listeners");
    let port = &listeners[0]["listen_address"]["trsvcid"];
    for host in ["127.0.0.3", "127.0.0.4"] {
        let path = json!({
            "name": "c0", "traddr": "127.0.0.1", "trsvcid": port, "hostaddr": host,
        });
        fixture.call("bdev_rnbd_add_path", path);
    }
    let paths = || {
        let controllers = fixture.ask("bdev_rnbd_get_controllers");
        controllers[0]["paths"].as_array().map_or(0, Vec::len)
    };
    let detach = |what: Value| {
        let mut params = json!({"name": "c0"});
        let all = params.as_object_mut().unwrap();
        all.extend(what.as_object().unwrap().clone());
        params
    };
    let fail = |what| {
        let error = fixture.fail("bdev_rnbd_detach_controller", detach(what));
        error.code
    };
    assert_eq!(paths(), 3);
    assert_eq!(fail(json!({"hostaddr": "127.0.0.9"})), -2);
    assert_eq!(fail(json!({"traddr": "127.0.0.1", "trsvcid": "1"})), -2);
    assert_eq!(fail(json!({"traddr": "here"})), -22);
    assert_eq!(fail(json!({"path": "a@b", "traddr": "127.0.0.1"})), -32602);
    let one = json!({"traddr": "127.0.0.1", "trsvcid": port, "hostaddr": "127.0.0.3"});
    fixture.call("bdev_rnbd_detach_controller", detach(one));
    assert_eq!(paths(), 2);
    let controllers = fixture.ask("bdev_rnbd_get_controllers");
    let name = &controllers[0]["paths"][1]["path"];
    fixture.call(
        "bdev_rnbd_detach_controller",
        detach(json!({ "path": name })),
    );
    assert_eq!(paths(), 1);
    let last = json!({"traddr": "127.0.0.1"});
    fixture.call("bdev_rnbd_detach_controller", detach(last));
    assert_eq!(fixture.ask("bdev_rnbd_get_controllers"), json!([]));
}

#[test]
fn all_that_is_notified_has_a_registered_type() {
    let fixture = Fixture::running();
    let listed: Vec<String> = serde_json::from_value(fixture.ask("notify_get_types")).unwrap();
    let port = fixture.listen();
    fixture.call(
        "rnbd_export_allow_any_host",
        json!({"device_path": "disk", "allow_any_host": true}),
    );
    fixture.attach(&port, "disk").unwrap();
    fixture.call("bdev_rnbd_detach_controller", json!({"name": "c0"}));

    let sent = fixture.call("notify_get_notifications", json!({"id": 0}));
    let sent = sent.as_array().unwrap().iter();
    let sent: Vec<&str> = sent.filter_map(|one| one["type"].as_str()).collect();
    let can_be_sent = NotificationKind::ALL.map(NotificationKind::as_str);
    for kind in sent.iter().chain(&can_be_sent).chain(&Notification::TYPES) {
        assert!(listed.iter().any(|one| one == kind), "{kind} of {listed:?}");
    }
    for kind in ["bdev_register", "bdev_rnbd_path_state", "rtrs_path_up"] {
        assert!(sent.contains(&kind), "{kind} of {sent:?}");
    }
}

#[test]
fn nothing_is_open_to_whom_it_was_not_opened() {
    let fixture = Fixture::running();
    let port = fixture.listen();
    assert_eq!(fixture.attach(&port, "disk").unwrap_err().code, -13);
    fixture.call(
        "rnbd_export_allow_any_host",
        json!({"device_path": "disk", "allow_any_host": true}),
    );
    assert_eq!(fixture.attach(&port, "absent").unwrap_err().code, -2);
    assert_eq!(fixture.attach(&port, "../disk").unwrap_err().code, -2);
    assert!(fixture.attach(&port, "disk").is_ok());
}

#[test]
fn what_was_saved_is_the_same_after_it_was_applied() {
    let first = Fixture::running();
    let port = first.listen();
    first.call("rnbd_set_options", json!({"max_devices_per_session": 7}));
    first.call(
        "rnbd_export_add_host",
        json!({"device_path": "disk", "host": "a", "traddr": "10.0.0.0/8"}),
    );
    first.call(
        "bdev_delay_create",
        json!({
            "name": "D0", "base_bdev_name": "M0", "avg_read_latency": 1, "p99_read_latency": 2,
            "avg_write_latency": 3, "p99_write_latency": 4,
        }),
    );
    first.call(
        "bdev_set_qos_limit",
        json!({"name": "M0", "rw_ios_per_sec": 3000, "w_mbytes_per_sec": 5}),
    );
    first.call("bdev_error_create", json!({"base_name": "absent"}));
    let saved = first.config();
    drop(first);

    let second = Fixture::new();
    let config: Config = serde_json::from_value(saved.clone()).unwrap();
    let known: Vec<&str> = SUBSYSTEMS.iter().map(|subsystem| subsystem.name).collect();
    for pass in [State::Startup, State::Runtime] {
        second.rpc.set_state(pass);
        second
            .run(config.apply(&second.rpc, pass, &known, false))
            .unwrap();
    }
    assert_eq!(second.config().to_string(), saved.to_string());
    assert_ne!(port, "0");
}

#[test]
fn a_listener_is_refused_where_there_is_one() {
    let fixture = Fixture::running();
    let port = fixture.listen();
    let address = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port});
    let error = fixture.fail("rtrs_add_listener", json!({ "listen_address": address }));
    assert_eq!(error.code, -98);
    let gone = json!({"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "1"});
    assert_eq!(
        fixture
            .fail("rtrs_remove_listener", json!({ "listen_address": gone }))
            .code,
        -19
    );
    assert_eq!(
        fixture
            .fail("rtrs_delete_transport", json!({"trtype": "TCP"}))
            .code,
        -16
    );
}

#[test]
fn a_chunk_over_tcp_has_room_for_128_kib_where_a_path_may_have_as_many() {
    let fixture = Fixture::running();
    let largest = |params: Value| {
        fixture.call("rtrs_create_transport", params);
        let transport = fixture.ask("rtrs_get_transports")[0].clone();
        fixture.call("rtrs_delete_transport", json!({"trtype": "TCP"}));
        (
            transport["max_chunk_size"].clone(),
            transport["max_io_size"].clone(),
        )
    };
    assert_eq!(largest(json!({})), (json!(135_168), json!(131_072)));
    let deep = json!({"sess_queue_depth": 2048});
    assert_eq!(largest(deep), (json!(131_072), json!(126_976)));
    let asked = json!({"max_chunk_size": 12_288});
    assert_eq!(largest(asked), (json!(12_288), json!(8192)));
}

#[test]
fn bad_input_is_named() {
    let fixture = Fixture::running();
    let cases = [
        ("bdev_malloc_delete", json!({"name": "none"}), -19),
        (
            "bdev_malloc_create",
            json!({"num_blocks": 8, "block_size": 600}),
            -22,
        ),
        ("rtrs_create_transport", json!({"trtype": "SHM"}), -95),
        (
            "rtrs_create_transport",
            json!({"max_chunk_size": 9000}),
            -22,
        ),
        (
            "rnbd_create_export",
            json!({"device_path": "a/../b", "bdev_name": "x"}),
            -22,
        ),
        (
            "rnbd_create_export",
            json!({"device_path": "a", "bdev_name": "x"}),
            -19,
        ),
        (
            "rnbd_set_options",
            json!({"dev_search_path": "relative"}),
            -22,
        ),
        ("rnbd_close_device", json!({"sessname": "s"}), -32602),
        (
            "nbd_start_export",
            json!({"bdev_name": "x", "address": "/tmp/none.sock"}),
            -19,
        ),
        (
            "nbd_start_export",
            json!({"bdev_name": "x", "address": "nowhere"}),
            -22,
        ),
        ("nbd_stop_export", json!({"address": "/tmp/none.sock"}), -19),
        ("bdev_rnbd_get_controllers", json!({"name": "none"}), -19),
        ("log_set_flag", json!({"flag": "none"}), -32602),
        (
            "thread_set_cpumask",
            json!({"id": 99, "cpumask": "0x1"}),
            -32602,
        ),
        ("spdk_kill_instance", json!({"sig_name": "SIGSTOP"}), -32602),
        ("framework_get_config", json!({"name": "none"}), -32602),
    ];
    for (method, params, code) in cases {
        let error = fixture.fail(method, params);
        assert_eq!(error.code, code, "{method}: {error}");
    }
}

#[test]
fn the_shapes_that_spdk_top_reads_have_no_other_members() {
    let fixture = Fixture::running();
    let keys = |value: &Value| {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(",")
    };
    let reactors = fixture.ask("framework_get_reactors");
    assert_eq!(
        keys(&reactors["reactors"][0]),
        "busy,idle,in_interrupt,irq,lcore,lw_threads,numa_id,sys,tid,usr"
    );
    assert_eq!(
        keys(&reactors["reactors"][0]["lw_threads"][0]),
        "cpumask,elapsed,id,name"
    );
    let stats = fixture.ask("thread_get_stats");
    assert_eq!(
        keys(&stats["threads"][0]),
        "active_pollers_count,busy,cpumask,id,idle,name,paused_pollers_count,timed_pollers_count"
    );
    fixture.listen();
    let pollers = fixture.ask("thread_get_pollers");
    let thread = &pollers["threads"][0];
    assert_eq!(
        keys(thread),
        "active_pollers,id,name,paused_pollers,timed_pollers"
    );
    assert_eq!(
        keys(&thread["active_pollers"][0]),
        "busy_count,id,name,run_count,state"
    );
}

#[test]
fn waiting_for_a_bdev_ends_when_it_comes_or_the_time_is_over() {
    let fixture = Fixture::running();
    let late = fixture.fail("bdev_get_bdevs", json!({"name": "M0", "timeout": 1}));
    assert_eq!(late.code, -110);
    let create = json!({"name": "M0", "num_blocks": 8, "block_size": 512});
    let wait = json!({"name": "M0", "timeout": 600_000});
    let found = fixture.run(async {
        let waiting = fixture.rpc.call("bdev_get_bdevs", Some(wait));
        let creating = fixture.rpc.call("bdev_malloc_create", Some(create));
        futures_util::future::join(waiting, creating).await.0
    });
    assert_eq!(found.unwrap()[0]["name"], "M0");
}

#[test]
fn statistics_and_histograms_of_an_idle_disk_are_empty() {
    let fixture = Fixture::running();
    fixture.listen();
    let stats = fixture.call("bdev_get_iostat", json!({"names": ["M0"]}));
    assert_eq!(stats["bdevs"][0]["num_read_ops"], 0);
    let none = json!({"name": "M0"});
    assert_eq!(fixture.fail("bdev_get_histogram", none).code, -14);
    let none = json!({"name": "M0", "borders": [10]});
    assert_eq!(fixture.fail("bdev_get_histogram_borders", none).code, -14);
    fixture.call(
        "bdev_enable_histogram",
        json!({"name": "M0", "enable": true}),
    );
    let histogram = fixture.call("bdev_get_histogram", json!({"name": "M0"}));
    assert_eq!(histogram["tsc_rate"], 1_000_000_000);
    let counts = fixture.call(
        "bdev_get_histogram_borders",
        json!({"name": "M0", "borders": [10, 100]}),
    );
    assert_eq!(counts, json!({"borders_count": [0, 0, 0]}));
}

#[test]
fn the_monitor_of_context_switches_says_whether_it_is_on() {
    let fixture = Fixture::running();
    let monitor = |params| fixture.call("framework_monitor_context_switch", params);
    assert_eq!(monitor(json!({})), json!({"enabled": false}));
    for enabled in [true, true, false, true] {
        let told = json!({ "enabled": enabled });
        assert_eq!(monitor(told.clone()), told);
        assert_eq!(monitor(json!({})), told);
    }
    let bad = fixture.fail("framework_monitor_context_switch", json!({"enabled": 1}));
    assert_eq!(bad.code, -32602);
}
