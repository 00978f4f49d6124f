# shellcheck shell=bash disable=SC2034
about="a request and a response an I/O, counted by the devices: kernel peers, our target, our initiator"
limit=300

count=500

prepare() { build_ours; }

# Each side has a device of its own, with its own counters.
run() {
    null_device null0 24
    cable_up
    load_kernel_client
    local mode
    for mode in N Y; do
        note "kernel server, always_invalidate=$mode"
        load_kernel_server "always_invalidate=$mode"
        kernel_client dev/null0
        our_initiator dev/null0
        unload_kernel_client
        unload_kernel_server
        load_kernel_client
    done
    for mode in false true; do
        note "our target, always_invalidate=$mode"
        start_ours target -m '[1]'
        offer_memory target ram 24
        listen target 10.9.2.2 "--always-invalidate=$mode"
        kernel_client ram
        our_initiator ram
        stop_ours target
    done
}

# The kernel's client has the key of a read's buffer invalidated, which takes another message.
kernel_client() {
    local device
    device=$(kernel_map s1 10.9.2.1,ip:10.9.2.2 "$1")
    count_messages "$device" randwrite "$count"
    count_messages "$device" randread $((2 * count))
    kernel_unmap "$device"
}

our_initiator() {
    local device
    start_ours initiator -m '[0]'
    attach initiator 10.9.2.2 "$1" --hostaddr 10.9.2.1
    device=$(nbd_device initiator "${1//\//!}")
    count_messages "$device" randwrite "$count"
    count_messages "$device" randread "$count"
    nbd_disconnect
    stop_ours initiator
}

# count_messages DEVICE WORKLOAD ANSWERS
count_messages() {
    local device=$1 workload=$2 answers=$3 client server started=$SECONDS others
    client=$(received cable0) server=$(received cable1)
    fio --name=counted --filename="$device" --rw="$workload" --bs=4k --number_ios="$count" \
        --ioengine=libaio --direct=1 --iodepth=8 --size=16m --output-format=terse >/dev/null
    client=$(($(received cable0) - client)) server=$(($(received cable1) - server))
    # Heartbeats, ours every 2 s, and their answers.
    others=$((4 + 2 * (SECONDS - started)))
    note "$workload: $count I/Os, $server requests, $client answers, at most $others heartbeats"
    within "requests" "$server" "$count" "$others"
    within "answers" "$client" "$answers" "$others"
}

received() { cat "/sys/class/infiniband/$1/ports/1/hw_counters/rdma_recvs"; }

# within WHAT FOUND EXPECTED MORE
within() {
    if [ "$2" -lt "$3" ] || [ "$2" -gt $(($3 + $4)) ]; then fail "$2 $1, not $3"; fi
}
