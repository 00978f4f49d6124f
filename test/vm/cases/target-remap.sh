# shellcheck shell=bash disable=SC2034
about="kernel client, our target: mapped and unmapped 100 times, nothing left behind"
limit=400
long=true

prepare() { build_ours; }

run() {
    load_kernel_client
    start_ours target -m '[1]'
    offer_memory target ram 16
    listen target 10.9.0.1
    local round files
    for round in {1..100}; do
        once_mapped "$round"
        [ "$round" = 1 ] && files=$(open_files)
    done
    wait_for 20 as_many_files "$files" || fail "$(open_files) files are open, $files after one round"
    stop_ours target
}

# once_mapped ROUND: writes something of its own, and reads it past the page cache.
once_mapped() {
    local device
    device=$(kernel_map s1 10.9.0.1 ram)
    printf '%512s' "$1" | dd of="$device" oflag=direct status=none
    equal "what was written" "$(dd if="$device" count=1 iflag=direct status=none)" \
        "$(printf '%512s' "$1")"
    kernel_unmap "$device"
}

open_files() { find "/proc/$(cat /run/target.pid)/fd" -type l | wc -l; }
as_many_files() { [ "$(open_files)" -le "$1" ]; }
