# shellcheck shell=bash disable=SC2034
about="our target: a device that breaks, verbs calls that fail, devices without memory windows"
limit=150

prepare() {
    build_ours
    need_rdma_core
    gcc -Wall -Wextra -Werror -shared -fPIC -o "$cache/vm/verbs_faults.so" \
        test/vm/guest/verbs_faults.c -libverbs -ldl
    keep_program "$cache/vm/verbs_faults.so" verbs_faults.so
}

# What guest/verbs_faults.c looks for is in this folder.
faults=/run/verbs-faults

run() {
    mkdir -p "$faults"
    launcher="env LD_PRELOAD=$RNBD_PROGRAMS/verbs_faults.so RNBD_VERBS_FAULTS=$faults"
    start_ours target -m '[1]'
    offer_memory target ram 16
    listen target 10.9.0.1
    device_breaks
    calls_fail
    equal "resets of the other device" "$(device_field target rxe1 resets_survived)" 0
    stop_ours target
    without_windows
}

device_breaks() {
    note "the device says that it is broken"
    start_load broken
    touch "$faults/fatal-rxe0"
    wait_for 10 test ! -e "$faults/fatal-rxe0" || fail "nobody has asked the device"
    end_load broken
    equal "broken" "$(device_field target rxe0 fatal_events)" 1
    equal "resets survived" "$(device_field target rxe0 resets_survived)" 1
}

calls_fail() {
    note "a reset while nothing of the device can be destroyed"
    start_load failing
    touch "$faults/failing"
    rpc target rdma_reset_device --name rxe0
    wait_for 10 survived 2 || fail "the device is not taken up again"
    rm "$faults/failing"
    end_load failing
    said target 'letting a queue pair go' || fail "the log does not say what failed"
}

survived() { [ "$(device_field target rxe0 resets_survived)" = "$1" ]; }

# start_load NAME: writes and verifies for some seconds; returns when it does.
start_load() {
    "$RNBD_PROGRAMS/rnbd_perf" -m '[0]' --reactor-mode adaptive -t 8 -w verify -q 8 -o 4096 \
        --attach "trtype=RDMA,traddr=10.9.0.1,device=ram,sessname=$1,reconnect_delay_sec=1" \
        >"/run/job/perf-$1.log" 2>&1 &
    load=$!
    wait_for 30 grep -q 'is up' "/run/job/perf-$1.log" || fail "no load"
}

# end_load NAME: it came back by itself, no I/O failed, no byte is wrong.
end_load() {
    wait_for 20 came_back "$1" || fail "the load does not come back"
    wait "$load" || { tail "/run/job/perf-$1.log"; fail "the load failed"; }
    grep verified "/run/job/perf-$1.log"
}

came_back() { [ "$(grep -c 'is up' "/run/job/perf-$1.log")" -ge 2 ]; }

without_windows() {
    note "no memory windows: plain mode unless the other is asked for"
    touch "$faults/no-windows"
    start_ours plain -m '[1]'
    refused 'memory windows' listen plain 10.9.0.1 --always-invalidate=true
    offer_memory plain ram 16
    listen plain 10.9.0.1
    equal "always_invalidate of the device" "$(device_field plain rxe0 always_invalidate)" false
    equal "always_invalidate of the transport" \
        "$(rpc plain --json rtrs_get_transports | jq '.[0].always_invalidate')" false
    said plain 'without memory windows' || fail "the log does not say so"
    load_kernel_client
    local device
    device=$(kernel_map s1 10.9.0.1 ram)
    fio_verified "$device" --rw=randrw --bs=4k --size=1m
    equal "always_invalidate of the session" \
        "$(rpc plain --json rtrs_get_sessions | jq '.[0].always_invalidate')" false
    kernel_unmap "$device"
    stop_ours plain
    rm "$faults/no-windows"
}
