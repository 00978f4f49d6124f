# shellcheck shell=bash disable=SC2034
about="our initiator, kernel server: its module unloaded and loaded under load; no write fails"
limit=240
long=true

prepare() {
    build_ours
    need_packages python3=python3
}

run() {
    loop=$(loop_device disk 16M)
    load_kernel_server
    start_ours initiator -m '[0]'
    attach initiator 10.9.0.1 "$loop"
    start_stamps "$(nbd_device initiator "${loop//\//!}")"
    local round
    for round in 1 2; do
        note "round $round"
        unload_kernel_server
        wait_for 20 controller_is reconnecting || fail "the initiator does not notice"
        load_kernel_server
        wait_for 40 controller_is enabled || fail "the initiator does not come back"
    done
    stop_stamps
    grep -q ' 0 failed' /run/stamps.result || fail "writes failed"
    same /dev/nbd0 "$loop"
    nbd_disconnect
    stop_ours initiator
}

controller_is() {
    [ "$(rpc initiator --json bdev_rnbd_get_controllers | jq -r '.[0].state')" = "$1" ]
}
