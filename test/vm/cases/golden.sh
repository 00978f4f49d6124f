# shellcheck shell=bash disable=SC2034
about="the kernel peers' traffic is captured: handshake, I/O and close, both modes"
limit=120
long=true

prepare() { need_packages tcpdump=tcpdump; }

# Leaves kernel-N.pcap and kernel-Y.pcap, for always_invalidate off and on, in the job folder.
run() {
    null_device disk0 24
    cable_up
    local mode
    for mode in N Y; do
        note "always_invalidate=$mode"
        load_kernel_server "always_invalidate=$mode"
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
    tcpdump -i wire0 -s 0 -U --immediate-mode -w /tmp/capture.pcap udp port 4791 &
    tcpdump=$!
    wait_for 20 test -s /tmp/capture.pcap || fail "tcpdump did not start"
    "$@"
    kill -INT "$tcpdump"
    wait "$tcpdump" || true
    mv /tmp/capture.pcap "$file"
    [ "$(packets "$file")" -gt 100 ] || fail "only $(packets "$file") packets were captured"
}

packets() { tcpdump -r "$1" 2>/dev/null | wc -l; }

some_of_everything() {
    local device
    device=$(kernel_map golden 10.9.2.1,ip:10.9.2.2 dev/disk0 access_mode=rw)
    fio_verified "$device" --rw=write --bs=128k --size=1m
    fio_verified "$device" --rw=randwrite --bs=512 --size=16k
    dd if=/dev/zero of="$device" bs=4k count=4 oflag=direct,sync status=none
    blkdiscard -o 0 -l 65536 "$device"
    kernel_unmap "$device"
}
