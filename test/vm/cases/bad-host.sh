# shellcheck shell=bash disable=SC2034
about="our target on a host that lacks something: each error names what"
limit=240

prepare() { build_ours; }

run() {
    port_taken
    gid_without_infiniband
    too_little_locked_memory
    no_device
}

port_taken() {
    note "the port is taken"
    start_ours target -m '[1]'
    listen target 10.9.0.1
    start_ours second -m '[0]'
    refused 'in use' listen second 10.9.0.1
    stop_ours second
    stop_ours target
}

gid_without_infiniband() {
    note "a GID, where no device is InfiniBand"
    local gid
    start_ours target -m '[1]'
    rpc target rtrs_create_transport --trtype RDMA
    gid=gid:$(device_field target rxe0 'ports[0].gids[0]')
    refused 'no InfiniBand device of this host has gid:' rpc target rtrs_add_listener \
        --trtype RDMA --traddr "$gid"
    refused 'no InfiniBand device of this host' attach_to "$gid"
    refused 'no InfiniBand device of this host' attach_to "$gid" --hostaddr "$gid"
    refused 'both GIDs' attach_to "$gid" --hostaddr 10.9.0.1
    equal "what is left" "$(rpc target --json bdev_rnbd_get_controllers | jq length)" 0
    add_listener target 10.9.0.1
    stop_ours target
}

# attach_to ADDRESS [OPTION]…: by the target itself.
attach_to() {
    rpc target bdev_rnbd_attach_controller --name box --sessname s1 --trtype RDMA --traddr "$@"
}

too_little_locked_memory() {
    note "ulimit -l"
    (
        ulimit -l 1024
        # Root is bound by it only without this capability.
        launcher="setpriv --bounding-set=-ipc_lock"
        start_ours bounded -m '[1]'
    )
    offer_memory bounded ram 16
    listen bounded 10.9.0.1
    load_kernel_client
    refused '' kernel_map s1 10.9.0.1 ram
    said bounded 'ulimit -l' || fail "the log does not say why"
    stop_ours bounded
}

no_device() {
    note "no RDMA device at all"
    rdma link del rxe0
    rdma link del rxe1
    start_ours target -m '[1]'
    refused 'RDMA device' listen target 10.9.0.1
    rpc target rtrs_create_transport --trtype TCP
    stop_ours target
}
