# shellcheck shell=bash disable=SC2034
about="the kernel's client on the kernel's server, always_invalidate off and on: the peers work"
limit=180

run() {
    modprobe brd rd_nr=1 rd_size=65536
    local mode
    for mode in N Y; do
        note "always_invalidate=$mode"
        load_kernel_server always_invalidate=$mode
        load_kernel_client
        verify_mapped
        unload_kernel_client
        unload_kernel_server
    done
}

verify_mapped() {
    local device
    device=$(kernel_map s1 10.9.0.1 dev/ram0 access_mode=rw)
    fio_verified "$device" --rw=randwrite --bs=4k
    fio_verified "$device" --rw=write --bs=128k
    cmp "$device" /dev/ram0
    kernel_unmap "$device"
}
