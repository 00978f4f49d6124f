# For cases: our target and initiator, driven by RPC. To be sourced after helpers.sh.
# shellcheck shell=bash

# start_ours NAME [OPTION]…: an rnbd_tgt of that name, answering when this returns. It shares its
# processor with the kernel, so it sleeps when it has nothing to do.
start_ours() {
    local name=$1
    shift
    "$RNBD_PROGRAMS/rnbd_tgt" -r "/run/$name.sock" --reactor-mode adaptive "$@" \
        >"/run/job/$name.log" 2>&1 &
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
    rpc "$1" spdk_kill_instance --sig-name SIGTERM
    wait_for 60 gone "$1" || fail "$1 does not end"
}

gone() { ! pgrep -f "[r]nbd_tgt -r /run/$1.sock" >/dev/null; }

# serve NAME TRTYPE ADDRESS DEVICE [OPTION]…: exports the device as `disk` and 64 MiB of memory as
# `ram` to everybody. Options are those of rtrs_create_transport.
serve() {
    local name=$1 trtype=$2 address=$3 device=$4
    shift 4
    rpc "$name" bdev_uring_create --name disk0 --filename "$device" --block-size 512
    rpc "$name" bdev_malloc_create --name ram0 --num-blocks 131072 --block-size 512
    rpc "$name" rtrs_create_transport --trtype "$trtype" "$@"
    rpc "$name" rnbd_create_export --device-path disk --bdev-name disk0 --allow-any-host
    rpc "$name" rnbd_create_export --device-path ram --bdev-name ram0 --allow-any-host
    rpc "$name" rtrs_add_listener --listen-address \
        "{\"trtype\":\"$trtype\",\"traddr\":\"$address\",\"trsvcid\":\"1234\"}"
}
