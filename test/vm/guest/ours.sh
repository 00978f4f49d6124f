# Our target and initiator, driven by RPC. To be sourced after helpers.sh.
# shellcheck shell=bash

# start_ours NAME [OPTION]…: an rnbd_tgt of that name, answering when this returns. It shares its
# processor with the kernel, so it sleeps when it has nothing to do, unless $reactor_mode is `busy`.
# $launcher, if set, starts it.
start_ours() {
    local name=$1
    shift
    ${launcher:-} "$RNBD_PROGRAMS/rnbd_tgt" -r "/run/$name.sock" --reactor-mode "${reactor_mode:-adaptive}" \
        "$@" >>"/run/job/$name.log" 2>&1 &
    echo $! >"/run/$name.pid"
    wait_for 60 answers "$name" || { tail -5 "/run/job/$name.log"; fail "$name does not answer"; }
}

answers() { rpc "$1" spdk_get_version >/dev/null 2>&1; }

# rpc NAME METHOD…
rpc() {
    local name=$1
    shift
    "$RNBD_PROGRAMS/rnbd_rpc" -s "/run/$name.sock" "$@"
}

stop_ours() {
    rpc "$1" spdk_kill_instance --sig-name SIGTERM >/dev/null
    wait_for 60 gone "$1" || fail "$1 does not end"
}

# kill_ours NAME: without a chance to say goodbye.
kill_ours() {
    kill -KILL "$(cat "/run/$1.pid")"
    wait_for 60 gone "$1" || fail "$1 does not end"
}

gone() { ! kill -0 "$(cat "/run/$1.pid")" 2>/dev/null; }

# said NAME TEXT: it is in the log of that program.
said() { grep -qE "$2" "/run/job/$1.log"; }

# offer NAME EXPORT BDEV [OPTION]…: to everybody.
offer() {
    local name=$1 path=$2 bdev=$3
    shift 3
    rpc "$name" rnbd_create_export --device-path "$path" --bdev-name "$bdev" --allow-any-host "$@"
}

# offer_file NAME EXPORT FILE: through io_uring.
offer_file() {
    rpc "$1" bdev_uring_create --name "$2-bdev" --filename "$3" --block-size 512
    offer "$1" "$2" "$2-bdev"
}

# offer_memory NAME EXPORT MIB
offer_memory() {
    rpc "$1" bdev_malloc_create --name "$2-bdev" --num-blocks "$(($3 * 2048))" --block-size 512
    offer "$1" "$2" "$2-bdev"
}

# listen NAME ADDRESS[:PORT] [OPTION]…: over RDMA. Options are those of rtrs_create_transport.
listen() {
    local name=$1 address=$2
    shift 2
    rpc "$name" rtrs_create_transport --trtype RDMA "$@"
    add_listener "$name" "$address"
}

# add_listener NAME ADDRESS[:PORT]
add_listener() {
    local port=${2#"${2%:*}"}
    port=${port#:}
    rpc "$1" rtrs_add_listener --trtype RDMA --traddr "${2%:*}" --trsvcid "${port:-1234}"
}

# device_field NAME DEVICE FIELD: what that program says of an RDMA device.
device_field() {
    rpc "$1" rdma_get_devices | jq -r ".[] | select(.name == \"$2\") | .$3"
}

# memory_checksum NAME BDEV: of a bdev that only its program can read.
memory_checksum() {
    local uri
    uri=$(rpc "$1" nbd_start_export --bdev-name "$2" --address "unix:/run/$2.nbd" --read-only)
    nbdcopy "$uri" - | md5sum | cut -d' ' -f1
    rpc "$1" nbd_stop_export --address "unix:/run/$2.nbd" >/dev/null
}

# attach NAME ADDRESS DEVICE_PATH [OPTION]…: maps a device of the server at that address as a bdev of
# the same name, with ! for /. Options are those of bdev_rnbd_attach_controller.
attach() {
    local name=$1 address=$2 path=$3
    shift 3
    rpc "$name" bdev_rnbd_attach_controller --name box --sessname "$name" --trtype RDMA \
        --traddr "$address" --reconnect-delay-sec 2 "$@"
    rpc "$name" bdev_rnbd_map_device --ctrlr-name box --device-path "$path" \
        --bdev-name "${path//\//!}"
}

# nbd_device NAME BDEV: the bdev as the block device /dev/nbd0.
nbd_device() {
    modprobe nbd nbds_max=1
    rpc "$1" nbd_start_export --bdev-name "$2" --address unix:/run/nbd.sock >/dev/null
    nbd-client -unix /run/nbd.sock -name "$2" /dev/nbd0 >/dev/null
    echo /dev/nbd0
}

nbd_disconnect() { nbd-client -disconnect /dev/nbd0 >/dev/null; }

# verify_with_perf ADDRESS DEVICE_PATH…: rnbd_perf on all of them at once, in small and large blocks.
verify_with_perf() {
    local address=$1 path attach=() size
    shift
    for path in "$@"; do
        attach+=(--attach "trtype=RDMA,traddr=$address,device=$path,sessname=perf-${#attach[@]}")
    done
    for size in 4096 126976; do
        "$RNBD_PROGRAMS/rnbd_perf" -m '[0]' -t 3 -w verify -q 16 -o "$size" "${attach[@]}"
    done
}

# stat_of NAME EXPORT MEMBER: a counter of rnbd_get_stats, over all sessions.
stat_of() {
    rpc "$1" --json rnbd_get_stats --device-path "$2" |
        jq "[.sessions[].devices[] | select(.device_path == \"$2\") | .$3] | add"
}
