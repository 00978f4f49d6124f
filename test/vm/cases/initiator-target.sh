# shellcheck shell=bash disable=SC2034
about="our initiator, our target: verified I/O by NBD and rnbd_perf, both modes"
limit=360

prepare() { build_ours; }

run() {
    loop=$(loop_device disk 64M)
    local always_invalidate
    for always_invalidate in false true; do
        note "always_invalidate=$always_invalidate"
        start_ours target -m '[1]'
        offer_file target disk "$loop"
        offer_memory target ram 24
        listen target 10.9.0.1 "--always-invalidate=$always_invalidate"
        verify_with_perf 10.9.0.1 disk ram
        use_by_nbd
        stop_ours target
    done
}

use_by_nbd() {
    local device
    start_ours initiator -m '[0]'
    attach initiator 10.9.0.1 disk
    device=$(nbd_device initiator disk)
    exercise "$device"
    exercise_discard "$device"
    same "$device" "$loop"
    nbd_disconnect
    stop_ours initiator
}
