# shellcheck shell=bash disable=SC2034
about="kernel client, our target: killed and started again under load; the client comes back"
limit=240
long=true

prepare() {
    build_ours
    need_packages python3=python3
}

run() {
    loop=$(loop_device disk 16M)
    load_kernel_client
    serve_disk
    local device
    device=$(kernel_map s1 10.9.0.1 disk)
    start_stamps "$device"
    kill_ours target
    wait_for 60 stamps_are failing || fail "writes succeed without a target"
    serve_disk
    # The client tries about every 31 s.
    wait_for 100 stamps_are writing || fail "the client does not come back"
    stop_stamps
    same "$device" "$loop"
    kernel_unmap "$device"
    stop_ours target
}

serve_disk() {
    start_ours target -m '[1]'
    offer_file target disk "$loop"
    listen target 10.9.0.1
}
