# shellcheck shell=bash disable=SC2034
about="a device removed, added and reset under verified I/O of ours, and removed from an idle target"
limit=240
long=true

prepare() { build_ours; }

run() {
    start_ours target -m '[1]'
    rpc target bdev_malloc_create --name ram0 --num-blocks 131072 --block-size 512
    rpc target rtrs_create_transport --trtype RDMA
    rpc target rnbd_create_export --device-path ram --bdev-name ram0 --allow-any-host
    listen 0.0.0.0 1234
    note "removed while nobody is connected"
    remove_device
    add_device
    listen 10.9.0.1 1235
    note "removed and added under load, with a listener of its own address"
    load 1235 /run/job/perf-removed.log &
    wait_for 20 grep -q 'is up' /run/job/perf-removed.log
    remove_device
    add_device
    wait_for 5 comes_back /run/job/perf-removed.log
    wait $!
    note "reset under load, a window for each request"
    load 1234 /run/job/perf-reset.log -c "$(windows_config)" &
    wait_for 20 grep -q 'is up' /run/job/perf-reset.log
    rpc target rdma_reset_device --name rxe0
    wait_for 5 comes_back /run/job/perf-reset.log
    wait $!
    [ "$(device_field target rxe0 resets_survived)" = 3 ] || fail "not three resets survived"
    [ "$(device_field target rxe1 resets_survived)" = 0 ] || fail "the other device was touched"
    stop_ours target
}

listen() {
    rpc target rtrs_add_listener --listen-address \
        "{\"trtype\":\"RDMA\",\"traddr\":\"$1\",\"trsvcid\":\"$2\"}"
}

# load PORT LOG [OPTION]…: writes and verifies for some seconds.
load() {
    local port=$1 log=$2
    shift 2
    "$RNBD_PROGRAMS/rnbd_perf" -m '[0]' --reactor-mode adaptive -t 12 -w verify -q 8 -o 4096 "$@" \
        --attach "trtype=RDMA,traddr=10.9.0.1,trsvcid=$port,device=ram,reconnect_delay_sec=1" \
        >"$log" 2>&1 || { tail "$log"; return 1; }
    grep verified "$log"
}

comes_back() { [ "$(grep -c 'is up' "$1")" -ge 2 ]; }

# The kernel waits for everybody who has the device open; 3 s are allowed.
remove_device() { timeout 3 rdma link delete rxe0; }

add_device() {
    rdma link add rxe0 type rxe netdev d0
    wait_for 5 is_active
}

is_active() { [ "$(device_field target rxe0 state)" = active ]; }

windows_config() {
    local file=/run/job/windows.json
    cat >"$file" <<'JSON'
{"subsystems": [{"subsystem": "rdma", "config": [
    {"method": "rdma_set_options", "params": {"window_per_request": true}}]}]}
JSON
    echo "$file"
}
