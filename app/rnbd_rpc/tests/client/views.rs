use serde_json::{Value, json};

use crate::support::Server;

fn view(name: &str, answers: Value) -> String {
    Server::start(answers).run(name).ok()
}

fn json_of(name: &str, answers: Value) -> Value {
    let text = Server::start(answers).run(&format!("--json {name}")).ok();
    serde_json::from_str(&text).unwrap()
}

const PATH: &str = "ip:10.0.0.1@ip:10.0.0.2";

fn sessions() -> Value {
    json!({
        "rtrs_get_sessions": [
            {"sessname": "host1", "paths_uuid": "u", "state": "connected", "queue_depth": 512,
             "devices": 2, "paths": [{"path": PATH, "state": "connected", "thread": "group_0",
             "connections": 3, "hb": {"interval_ms": 5000, "missed": 0, "last_rtt_ticks": 84_000}}]},
            {"sessname": "host2", "paths_uuid": "v", "state": "disconnected", "queue_depth": 512,
             "devices": 0, "paths": []}],
        "rtrs_get_stats": {"tick_rate": 1_000_000_000, "poll_groups": [], "sessions": [
            {"sessname": "host1", "paths": [{"path": PATH, "read_count": 1,
             "read_total_size": 4096, "write_count": 0, "write_total_size": 0, "inflights": 7}]}]},
    })
}

#[test]
fn sessions_show_each_path_and_its_counters() {
    let expected = "\
SESSION  STATE         PATH                     THREAD   CONNS  DEVICES  DEPTH  IN FLIGHT   READ  WRITTEN  LATENCY
host1    connected     ip:10.0.0.1@ip:10.0.0.2  group_0      3        2    512          7  4 KiB      0 B    84 us
host2    disconnected                                                 0    512
";
    assert_eq!(view("sessions", sessions()), expected);
    let json = json_of("sessions", sessions());
    assert_eq!(json[0]["paths"][0]["stats"]["inflights"], 7);
}

fn paths() -> Value {
    json!({
        "bdev_rnbd_get_controllers": [
            {"name": "box0", "sessname": "demo", "state": "reconnecting", "queue_depth": 512,
             "paths": [{"path": PATH, "path_id": 0, "state": "reconnecting", "connections": 0,
             "error": "Connection refused"}], "bdevs": ["rnbd0"]}],
        "bdev_rnbd_get_path_stats": {"tick_rate": 1_000_000_000, "controllers": [
            {"name": "box0", "paths": [{"path": PATH, "path_id": 0, "read_count": 2,
             "read_total_size": 1_572_864, "write_count": 0, "write_total_size": 0,
             "inflights": 32, "reconnects": {"successful": 1, "failed": 4},
             "hb_latency_us": null}]}]},
    })
}

#[test]
fn paths_show_how_they_do_and_what_is_wrong() {
    let text = view("paths", paths());
    let (header, row) = text.split_once('\n').unwrap();
    assert!(
        !header.contains("LATENCY"),
        "nothing is known of it: {text}"
    );
    let cells: Vec<&str> = row.split("  ").filter(|cell| !cell.is_empty()).collect();
    let cells: Vec<&str> = cells.iter().map(|cell| cell.trim()).collect();
    let expected = [
        "box0",
        "demo",
        "reconnecting",
        "0",
        PATH,
        "reconnecting",
        "0",
        "512",
        "32",
        "1 (4 failed)",
        "1.5 MiB",
        "0 B",
        "Connection refused",
    ];
    assert_eq!(cells, expected);
}

fn bdevs() -> Value {
    let bdev = |name: &str, product: &str, specific: Value| {
        json!({"name": name, "product_name": product, "block_size": 512, "num_blocks": 131_072,
               "uuid": "u", "claimed": false, "driver_specific": specific})
    };
    let rnbd = json!({"rnbd": {"ctrlr_name": "box0", "sessname": "demo", "device_path": "disk",
                               "access_mode": "rw", "device_id": 1, "state": "opened"}});
    json!({"bdev_get_bdevs": [bdev("Malloc0", "Malloc disk", json!({})),
                              bdev("rnbd0", "RNBD disk", rnbd)]})
}

#[test]
fn bdevs_show_all_and_devices_those_of_targets() {
    let all = "\
NAME     KIND           SIZE  BLOCK  UUID
Malloc0  Malloc disk  64 MiB    512  u
rnbd0    RNBD disk    64 MiB    512  u
";
    assert_eq!(view("bdevs", bdevs()), all);
    let mapped = "\
BDEV   CONTROLLER  SESSION  DEVICE  ACCESS  STATE     SIZE  BLOCK
rnbd0  box0        demo     disk    rw      opened  64 MiB    512
";
    assert_eq!(view("devices", bdevs()), mapped);
    assert_eq!(json_of("devices", bdevs()).as_array().unwrap().len(), 1);
}

#[test]
fn exports_show_who_may_and_who_does_open_them() {
    let export = |name: &str, any: bool, hosts: Value, opens: Value| {
        json!({"device_path": name, "bdev_name": "Malloc0", "access": "rw", "allow_any_host": any,
               "hosts": hosts, "opens": opens, "size_sectors": 2048, "logical_block_size": 512})
    };
    let opens = json!([{"sessname": "host1", "device_id": 0, "access_mode": "rw"}]);
    let rules = json!([{"host": "a", "traddr": null}, {"host": "db*", "traddr": "10.0.0.0/8"}]);
    let answers = json!({
        "rnbd_get_exports": [export("disk0", true, json!([]), opens),
                             export("disk1", false, json!([]), json!([])),
                             export("disk2", false, rules, json!([]))],
        "nbd_get_exports": [{"address": "/run/x", "uri": "nbd+unix:///a?socket=/run/x",
            "name": "a", "bdev_name": "rnbd0", "read_only": true, "connections": 2}],
    });
    let expected = "\
NAME   KIND  BDEV      SIZE  BLOCK  ACCESS  ALLOWED                 OPEN BY     URI
disk0  rnbd  Malloc0  1 MiB    512  rw      anybody                 host1 (rw)
disk1  rnbd  Malloc0  1 MiB    512  rw      nobody
disk2  rnbd  Malloc0  1 MiB    512  rw      a, db* from 10.0.0.0/8
a      nbd   rnbd0                  ro      anybody                 2 clients   nbd+unix:///a?socket=/run/x
";
    assert_eq!(view("exports", answers), expected);
}

#[test]
fn listeners_show_whom_they_refused() {
    let address = json!({"trtype": "TCP", "traddr": "::1", "trsvcid": "1234"});
    let answers = json!({"rtrs_get_listeners": [
        {"listen_address": address, "accepted": 3, "rejected": {"EPROTO": 2}}]});
    let expected = "\
TRANSPORT  ADDRESS  PORT  ACCEPTED  REJECTED
TCP        ::1      1234         3  2 EPROTO
";
    assert_eq!(view("listeners", answers), expected);
}

#[test]
fn reactors_show_how_busy_they_are() {
    let thread = |name: &str| json!({"name": name, "id": 1, "cpumask": "1", "elapsed": 10_000});
    let answers = || {
        json!({"framework_get_reactors": {"tick_rate": 1000, "pid": 1, "reactors": [
            {"lcore": 0, "numa_id": 0, "tid": 2, "busy": 250, "idle": 750, "in_interrupt": true,
             "irq": 0, "sys": 100, "usr": 400, "lw_threads": [thread("a"), thread("b")]}]}})
    };
    let expected = "\
CORE  MODE      BUSY %  CPU %  THREADS  NAMES
   0  sleeping    25.0   50.0        2  a, b
";
    assert_eq!(view("reactors --interval 0", answers()), expected);
    let json = json_of("reactors --interval 0", answers());
    assert_eq!(json["reactors"][0]["busy_percent"], 25.0);
    // Between two samples that are the same, nothing ran.
    let text = view("reactors --interval 0.001", answers());
    assert!(text.contains("a, b") && !text.contains("BUSY"), "{text}");
}

#[test]
fn where_there_is_nothing_to_show_the_way_to_it_is() {
    let text = view("listeners", json!({"rtrs_get_listeners": []}));
    assert!(text.contains("rtrs_add_listener"), "{text}");
    assert_eq!(
        json_of("listeners", json!({"rtrs_get_listeners": []})),
        json!([])
    );
}

#[test]
fn an_answer_of_another_form_is_an_error_and_no_panic() {
    let server = Server::start(json!({"rtrs_get_listeners": [{"accepted": "many"}]}));
    let error = server.run("listeners").error(1);
    assert!(
        error.contains("rtrs_get_listeners: the answer is of an unknown form"),
        "{error}"
    );
}
