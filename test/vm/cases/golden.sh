# shellcheck shell=bash disable=SC2034
about="the kernel peers' traffic is captured for lib/wire/tests/golden: handshake, I/O, close"
limit=180
long=true

prepare() { need_packages tcpdump=tcpdump; }

# Leaves kernel-N.pcap and kernel-Y.pcap, for always_invalidate off and on, in the job folder.
run() {
    # So small that looking for partitions does not fill the captures.
    loop=$(loop_device golden 64K)
    cable_up
    local mode
    for mode in N Y; do
        note "always_invalidate=$mode"
        load_kernel_server "always_invalidate=$mode" sess_queue_depth=64
        load_kernel_client
        capture "/run/job/kernel-$mode.pcap" some_of_everything
        unload_kernel_client
        unload_kernel_server
    done
}

# capture FILE COMMAND…
capture() {
    local file=$1 tcpdump
    shift
    # The file grows in memory and is handed over at the end: the job folder is slow.
    tcpdump -i wire0 -s 0 -B 16384 -U --immediate-mode -w /tmp/capture.pcap udp port 4791 &
    tcpdump=$!
    wait_for 20 test -s /tmp/capture.pcap || fail "tcpdump did not start"
    "$@"
    kill -INT "$tcpdump"
    wait "$tcpdump" || true
    mv /tmp/capture.pcap "$file"
    [ "$(packets "$file")" -gt 100 ] || fail "only $(packets "$file") packets were captured"
}

packets() { tcpdump -r "$1" 2>/dev/null | wc -l; }

# As little of everything as there can be, because the captures are kept with the sources.
some_of_everything() {
    local device
    device=$(kernel_map golden 10.9.2.1,ip:10.9.2.2 "$loop")
    dd if=/dev/urandom of="$device" bs=8k count=1 oflag=direct status=none
    dd if=/dev/urandom of="$device" bs=512 count=2 seek=100 oflag=direct,dsync status=none
    dd if="$device" of=/dev/null bs=4k count=2 iflag=direct status=none
    sync "$device"
    blkdiscard -o 0 -l 32768 "$device"
    echo "sessname=golden path=ip:10.9.2.2 device_path=dev/nothing" \
        2>/dev/null >/sys/devices/virtual/rnbd-client/ctl/map_device && fail "mapped nothing"
    wait_for 20 heartbeat_answered || fail "no heartbeat"
    kernel_unmap "$device"
}

# The round trip of the last heartbeat is known once there was one.
heartbeat_answered() {
    ! grep -q '^0 ' /sys/class/rtrs-client/golden/paths/*/cur_latency
}
