# Block devices to be exported, and what they hold. To be sourced after helpers.sh.
# shellcheck shell=bash

# null_device NAME MIB: a block device /dev/NAME in memory, with discard and a write cache.
null_device() {
    local settings=/sys/kernel/config/nullb/$1
    modprobe null_blk nr_devices=0
    mountpoint -q /sys/kernel/config || mount -t configfs config /sys/kernel/config
    mkdir "$settings"
    echo "$2" >"$settings/size"
    echo 4 >"$settings/cache_size"
    echo 1 | tee "$settings/memory_backed" "$settings/discard" "$settings/power" >/dev/null
}

# loop_device NAME SIZE: the block device of a file in memory, and its name. It both discards and
# writes zeroes, so a file system and a bdev get both.
loop_device() {
    local file=/run/disks/$1
    modprobe loop
    mkdir -p /run/disks
    truncate -s "$2" "$file"
    losetup --find --show "$file"
}

# grow_loop DEVICE SIZE
grow_loop() {
    truncate -s "$2" "$(losetup --noheadings --output BACK-FILE "$1")"
    losetup --set-capacity "$1"
}

# ram_disk MIB: /dev/ram0.
ram_disk() { modprobe brd rd_nr=1 "rd_size=$(($1 * 1024))"; }

sectors() { blockdev --getsz "$1"; }

# same DEVICE DEVICE: equal to the last byte, read past the page cache.
same() { equal "the content of $1" "$(checksum "$1")" "$(checksum "$2")"; }

checksum() { dd if="$1" bs=1M iflag=direct status=none | md5sum | cut -d' ' -f1; }
