# shellcheck shell=bash disable=SC2034
about="the kernel's modules load, and user space passes data between both rxe devices"
limit=60

run() {
    load_kernel_server
    load_kernel_client
    [ -e /sys/devices/virtual/rnbd-client/ctl/map_device ] || fail "no rnbd client"

    local number
    for number in 0 1; do
        rdma link show "rxe$number/1" | grep "state ACTIVE"
        rping -s -a "10.9.$number.1" -C 10 &
        wait_for 20 rping -c -a "10.9.$number.1" -C 10 -v || fail "rping through rxe$number"
        wait $! || fail "rping server on rxe$number"
    done
}
