# shellcheck shell=bash disable=SC2034
about="our initiator, kernel server: verified I/O and files by NBD, rnbd_perf on all disks, both modes"
limit=360

prepare() { build_ours; }

run() {
    null_device null0 24
    ram_disk 24
    loop=$(loop_device disk 64M)
    local mode
    for mode in N Y; do
        note "always_invalidate=$mode"
        load_kernel_server "always_invalidate=$mode"
        verify_with_perf 10.9.0.1 dev/null0 dev/ram0 "$loop"
        use_by_nbd
        unload_kernel_server
    done
}

use_by_nbd() {
    local device
    start_ours initiator -m '[0]'
    attach initiator 10.9.0.1 "$loop"
    device=$(nbd_device initiator "${loop//\//!}")
    exercise "$device"
    exercise_discard "$device"
    exercise_files "$device" ext4
    same "$device" "$loop"
    nbd_disconnect
    stop_ours initiator
}
