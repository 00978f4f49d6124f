# shellcheck shell=bash disable=SC2034
about="kernel client, our target: verified I/O of all kinds on uring and malloc bdevs, both modes"
limit=360

prepare() { build_ours; }

run() {
    loop=$(loop_device disk 24M)
    ram_disk 16
    load_kernel_client
    local always_invalidate
    for always_invalidate in false true; do
        note "always_invalidate=$always_invalidate"
        start_ours target -m '[1]'
        offer_file target disk "$loop"
        offer_memory target ram 24
        offer_file target uncached /dev/ram0
        listen target 10.9.0.1 "--always-invalidate=$always_invalidate"
        use_both
        stop_ours target
    done
}

use_both() {
    local disk ram
    disk=$(kernel_map s1 10.9.0.1 disk)
    ram=$(kernel_map s1 10.9.0.1 ram)
    exercise "$disk"
    exercise "$ram"
    exercise_discard "$disk"
    exercise_discard "$ram"
    saw_everything disk
    same "$disk" "$loop"
    tells_of_its_cache "$disk" "$loop"
    equal "what the target has" "$(memory_checksum target ram-bdev)" "$(checksum "$ram")"
    kernel_unmap "$ram"
    kernel_unmap "$disk"
    disk=$(kernel_map s1 10.9.0.1 uncached)
    tells_of_its_cache "$disk" /dev/ram0
    kernel_unmap "$disk"
}

# tells_of_its_cache MAPPED DEVICE: a client flushes what is cached, and only that.
tells_of_its_cache() { equal "the cache of $1" "$(cache_of "$1")" "$(cache_of "$2")"; }

cache_of() { cat "/sys/class/block/${1##*/}/queue/write_cache"; }

# saw_everything EXPORT: the target was asked for each kind of I/O.
saw_everything() {
    local kind
    for kind in reads writes flushes discards; do
        [ "$(stat_of target "$1" "$kind")" -gt 0 ] || fail "the target saw no $kind"
    done
}
