# shellcheck shell=bash disable=SC2034
about="IPv6: the kernel's client and our initiator on our target, our initiator on the kernel's server"
limit=150
long=true

prepare() { build_ours; }

address=fd00:9::1

run() {
    ip address add "$address/64" dev d0 nodad
    wait_for 10 has_gid || fail "the device does not take the address"
    ram_disk 16
    start_ours target -m '[1]'
    offer_memory target ram 16
    rpc target rtrs_create_transport --trtype RDMA
    rpc target rtrs_add_listener --trtype RDMA --traddr "$address" --trsvcid 1234
    note "kernel client, our target"
    load_kernel_client
    local device
    device=$(kernel_map s1 "$address" ram)
    fio_verified "$device" --rw=randrw --bs=4k --size=1m
    equal "path" "$(rpc target --json rtrs_get_sessions | jq -r '.[0].paths[0].path')" \
        "ip:$address@ip:$address"
    kernel_unmap "$device"
    note "our initiator, our target"
    verify_with_perf "$address" ram
    stop_ours target
    note "our initiator, kernel server"
    load_kernel_server
    verify_with_perf "$address" /dev/ram0
}

has_gid() { grep -rq 'fd00:0009:' /sys/class/infiniband/rxe0/ports/1/gids 2>/dev/null; }
