# shellcheck shell=bash disable=SC2034
about="rnbd inside SPDK over RDMA: bdevperf on our target and on the kernel's server, the kernel's client on spdk_tgt"
limit=600
long=true

# A built tree of SPDK, with shared libraries and for a processor that can be emulated.
spdk=${RNBD_SPDK:-}

prepare() {
    [ -x "$spdk/build/bin/spdk_tgt" ] || {
        echo "RNBD_SPDK names no built SPDK (configured with --with-shared --target-arch=x86-64-v2)"
        return 77
    }
    build_ours
    is_kept libspdk_rnbd.so && return
    SPDK_DIR=$spdk cargo build --release --quiet --locked -p spdk_rnbd --features spdk,rdma
    keep_program target/release/libspdk_rnbd.so libspdk_rnbd.so
}

run() {
    initiator_in_spdk
    target_in_spdk
}

# with_module PROGRAM OPTION…: one of SPDK's programs, with rnbd in it.
with_module() {
    local program=$spdk/build/$1
    shift
    env LD_LIBRARY_PATH="$spdk/build/lib" LD_PRELOAD="$RNBD_PROGRAMS/libspdk_rnbd.so" \
        "$program" --no-huge -s 1024 --no-pci --disable-cpumask-locks "$@"
}

initiator_in_spdk() {
    local mode
    for mode in N Y; do
        note "bdevperf on the kernel's server and on our target, always_invalidate=$mode"
        load_kernel_server "always_invalidate=$mode"
        start_ours target -m '[1]'
        offer_memory target ram 32
        listen target 10.9.0.1:1235 "--always-invalidate=$([ $mode = Y ] && echo true || echo false)"
        verify_in_spdk 1235 ram
        [ -e /dev/ram0 ] || ram_disk 32
        verify_in_spdk 1234 dev/ram0
        stop_ours target
        unload_kernel_server
    done
}

# verify_in_spdk PORT DEVICE_PATH: what bdevperf wrote over RDMA is what it reads, in small and large I/O.
verify_in_spdk() {
    local port=$1 path=$2 size
    jq -n --arg port "$port" --arg path "$path" '{subsystems: [{subsystem: "bdev", config: [{
        method: "bdev_rnbd_attach_controller", params: {
            name: "R", sessname: "spdk", trtype: "RDMA", traddr: "10.9.0.1", trsvcid: $port,
            devices: [{device_path: $path, bdev_name: "disk"}]}}]}]}' >/run/bdevperf.json
    for size in 4096 65536; do
        with_module examples/bdevperf -m '[0]' -r /run/bdevperf.sock -c /run/bdevperf.json \
            -q 8 -o "$size" -w verify -t 3 >/run/job/bdevperf.log 2>&1 ||
            { tail -5 /run/job/bdevperf.log; fail "bdevperf on $path at port $port"; }
        did_io || fail "bdevperf did no I/O on $path at port $port"
    done
}

# did_io: the last line of bdevperf's table has I/O per second, and none that failed.
did_io() {
    grep 'Total' /run/job/bdevperf.log
    awk '/Total/ {seen = 1; for (i = 1; i <= NF; i++) if ($i == ":") {iops = $(i + 1); failed = $(i + 3)}}
        END {exit !(seen && iops > 0 && failed == 0)}' /run/job/bdevperf.log
}

target_in_spdk() {
    note "the kernel's client on spdk_tgt"
    local device
    with_module bin/spdk_tgt -m '[1]' -r /run/spdk.sock >>/run/job/spdk.log 2>&1 &
    echo $! >/run/spdk.pid
    wait_for 120 answers spdk || { tail -5 /run/job/spdk.log; fail "spdk_tgt does not answer"; }
    rpc spdk call bdev_malloc_create '{"name": "Malloc0", "num_blocks": 65536, "block_size": 512}'
    offer spdk disk Malloc0
    listen spdk 10.9.0.1:1236
    load_kernel_client
    device=$(kernel_map spdk 10.9.0.1 disk dest_port=1236)
    exercise "$device"
    kernel_unmap "$device"
    stop_ours spdk
}
