# shellcheck shell=bash disable=SC2034
about="a cable that loses packets: our initiator on our target and on the kernel's server, both modes, no wrong byte"
limit=600
long=true

prepare() { build_ours; }

run() {
    ram_disk 16
    cable_up
    lose_packets 0.5%
    local always_invalidate
    for always_invalidate in false true; do
        note "our target, always_invalidate=$always_invalidate"
        start_ours target -m '[1]'
        offer_memory target ram 16
        listen target 10.9.2.1 "--always-invalidate=$always_invalidate"
        verify ram | tee /run/verify.log
        connection_was_kept
        stop_ours target
    done
    for always_invalidate in N Y; do
        note "kernel server, always_invalidate=$always_invalidate"
        load_kernel_server "always_invalidate=$always_invalidate"
        verify dev/ram0
        unload_kernel_server
    done
    something_was_lost
}

# lose_packets SHARE: in both directions of the cable.
lose_packets() {
    local number
    modprobe sch_netem
    for number in 0 1; do
        tc qdisc add dev "wire$number" root netem loss "$1"
    done
}

# verify DEVICE_PATH: with the kernel's server and always_invalidate the connection may be lost, because
# soft-RoCE cannot repeat local work that it has done before (docs/operations.md); I/O may not. Small
# blocks alone: with large ones soft-RoCE comes down to a few I/Os a second. The kernel's client is not
# here because it fails its I/O when it loses its connection.
verify() {
    "$RNBD_PROGRAMS/rnbd_perf" -m '[0]' -t 15 -w verify -q 16 -o 4096 \
        --attach "trtype=RDMA,traddr=10.9.2.1,hostaddr=10.9.2.2,device=$1,sessname=perf" 2>&1
}

# A packet that is lost costs time, not the connection.
connection_was_kept() {
    equal "how the session ended" "$(grep -o 'session perf is down: .*' /run/verify.log)" \
        "session perf is down: closed on request"
}

something_was_lost() {
    local number dropped
    for number in 0 1; do
        dropped=$(tc -s -j qdisc show dev "wire$number" | jq '.[0].drops')
        note "wire$number lost $dropped packets"
        [ "$dropped" -gt 0 ] || fail "wire$number lost no packet"
    done
}
