# shellcheck shell=bash disable=SC2034
about="kernel client, our target: ext4 and xfs, filled, trimmed, sound and equal on both sides"
limit=400
long=true

prepare() {
    build_ours
    need_packages mkfs.xfs=xfsprogs mkfs.ext4=e2fsprogs
}

run() {
    loop=$(loop_device disk 320M)
    load_kernel_client
    start_ours target -m '[1]'
    offer_file target disk "$loop"
    offer_memory target ram 64
    listen target 10.9.0.1

    local disk ram
    disk=$(kernel_map s1 10.9.0.1 disk)
    ram=$(kernel_map s1 10.9.0.1 ram)
    exercise_files "$ram" ext4
    exercise_files "$disk" xfs
    equal "what the target has" "$(memory_checksum target ram-bdev)" "$(checksum "$ram")"
    kernel_unmap "$ram"
    kernel_unmap "$disk"
    check_files "$loop" xfs
    stop_ours target
}
