# shellcheck shell=bash disable=SC2034
about="kernel client, our target: sessions side by side, names at their limits, read-only, resize"
limit=360

prepare() { build_ours; }

run() {
    loop=$(loop_device disk 16M)
    load_kernel_client
    start_ours target -m '[1]'
    offer_file target disk "$loop"
    offer_memory target ram 16
    listen target 0.0.0.0
    two_devices_on_one_session
    two_sessions
    read_only_mapping
    longest_names
    resize
    stop_ours target
}

two_devices_on_one_session() {
    note "two devices on one session"
    local disk ram
    disk=$(kernel_map s1 10.9.0.1 disk)
    ram=$(kernel_map s1 10.9.0.1 ram)
    equal "the number of sessions" "$(session_count)" 1
    at_once "$disk" "$ram"
    kernel_unmap "$disk"
    fio_verified "$ram" --rw=randrw --bs=4k --size=1m
    kernel_unmap "$ram"
    wait_for 20 no_sessions || fail "the session is still there"
}

two_sessions() {
    note "two sessions, through a device each"
    local disk ram
    disk=$(kernel_map s1 10.9.0.1 disk)
    ram=$(kernel_map s2 10.9.1.1 ram)
    equal "the number of sessions" "$(session_count)" 2
    at_once "$disk" "$ram"
    refused 'Operation not permitted' kernel_map s2 10.9.1.1 disk
    kernel_unmap "$disk"
    kernel_unmap "$ram"
}

# at_once DEVICE DEVICE: I/O on both.
at_once() {
    fio_verified "$1" --rw=randrw --bs=4k --size=4m &
    fio_verified "$2" --rw=randrw --bs=64k --size=8m
    wait $!
}

read_only_mapping() {
    note "read-only"
    local disk
    disk=$(kernel_map s1 10.9.0.1 disk access_mode=ro)
    equal "the read-only flag" "$(blockdev --getro "$disk")" 1
    same "$disk" "$loop"
    refused 'Read-only|not permitted' dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct
    same "$disk" "$loop"
    kernel_unmap "$disk"
}

longest_names() {
    note "names of 254 characters"
    local session path disk
    session=$(printf 's%.0s' {1..254})
    path=$(printf 'd%.0s' {1..254})
    rpc target bdev_malloc_create --name long --num-blocks 8192 --block-size 512
    offer target "$path" long >/dev/null
    disk=$(kernel_map "$session" 10.9.0.1 "$path")
    rpc target --json rtrs_get_sessions | jq -e "any(.sessname == \"$session\")" >/dev/null ||
        fail "the target calls the session something else"
    fio_verified "$disk" --rw=randrw --bs=4k --size=1m
    kernel_unmap "$disk"
}

# The protocol does not announce a new size: the client is told on its own side, and hears it from
# the target when it maps again.
resize() {
    note "resize"
    local disk
    disk=$(kernel_map s1 10.9.0.1 disk)
    grow_loop "$loop" 24M
    rpc target bdev_uring_rescan --name disk-bdev
    equal "the size before" "$(sectors "$disk")" 32768
    echo 49152 >"/sys/block/${disk##*/}/rnbd/resize"
    equal "the size after" "$(sectors "$disk")" 49152
    fio_verified "$disk" --rw=write --bs=64k --offset=16m --size=8m
    same "$disk" "$loop"
    kernel_unmap "$disk"
    disk=$(kernel_map s1 10.9.0.1 disk)
    equal "the size of a new mapping" "$(sectors "$disk")" 49152
    kernel_unmap "$disk"
}

session_count() { rpc target --json rtrs_get_sessions | jq length; }
no_sessions() { [ "$(session_count)" = 0 ]; }
