# shellcheck shell=bash disable=SC2034
about="the kernel's client on the kernel's server, always_invalidate off and on: the peers work"
limit=180

run() {
    null_device disk0 24
    local mode
    for mode in N Y; do
        note "always_invalidate=$mode"
        load_kernel_server "always_invalidate=$mode"
        load_kernel_client
        use_mapped
        unload_kernel_client
        unload_kernel_server
    done
}

use_mapped() {
    local device
    device=$(kernel_map s1 10.9.0.1 dev/disk0 access_mode=rw)
    exercise "$device"
    exercise_discard "$device"
    same "$device" /dev/disk0
    kernel_unmap "$device"
}
