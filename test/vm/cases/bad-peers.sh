# shellcheck shell=bash disable=SC2034
about="our target: peers that break the protocol or vanish are refused by name, others are served"
limit=300

prepare() {
    build_ours
    build_test rnbd-verbs strangers strangers
}

run() {
    load_kernel_client
    start_ours target -m '[1]' --wait-for-rpc
    rpc target rtrs_set_options --hb-interval-ms 2000 --hb-missed-max 3
    rpc target framework_start_init
    offer_memory target ram 16
    offer_memory target other 16
    listen target 0.0.0.0
    local device
    device=$(kernel_map honest 10.9.0.1 ram)
    strangers
    fio_verified "$device" --rw=randrw --bs=4k --size=1m
    same_name
    cable_up
    wait_for 10 knows_cable || fail "the target does not take up the new device"
    vanished_client
    fio_verified "$device" --rw=randrw --bs=4k --size=1m
    kernel_unmap "$device"
    stop_ours target
}

strangers() {
    note "connection requests and first messages that are wrong"
    RNBD_VERBS_TARGET=10.9.0.1:1234 "$RNBD_PROGRAMS/strangers" --test-threads=1
    local why
    for why in 'magic is 0xadde' 'version is 3' 'cid_num is 0' 'cid_num is 4097' 'cid is 2' \
        'session twice: .* closes: connection lost: a send' 'session name is in use'; do
        said target "$why" || fail "the log does not say '$why'"
    done
}

same_name() {
    note "a host that calls itself as another does"
    start_ours initiator -m '[0]'
    refused 'EEXIST|in use|refus|closed|EPERM|ECONN' rpc initiator bdev_rnbd_attach_controller \
        --name box --sessname honest --trtype RDMA --traddr 10.9.0.1
    stop_ours initiator
}

# No disconnect is heard: the heartbeats stop.
vanished_client() {
    note "a client that vanishes"
    local device
    device=$(kernel_map vanishing 10.9.2.1,ip:10.9.2.2 other)
    ip link set wire0 down
    wait_for 60 vanished || fail "the target does not notice"
    said target 'vanishing.*closes' || fail "the log does not say why"
    kernel_unmap "$device" force
}

# The device is new to the target, too, which looks for such once in a while.
knows_cable() { rpc target --json rdma_get_devices | grep -q cable1; }

vanished() { ! rpc target --json rtrs_get_sessions | grep -q vanishing; }
