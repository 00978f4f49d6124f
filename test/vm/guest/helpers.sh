# For cases and for the interactive guest: the kernel's modules, its devices, and checks.
# shellcheck shell=bash

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
note() { printf -- '--- %s\n' "$*"; }

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# load_module NAME [PARAMETER=VALUE]…: a module that was built here, after those it needs.
load_module() {
    local name=$1
    shift
    grep -q "^${name//-/_} " /proc/modules || insmod "$RNBD_MODULES/$name.ko" "$@"
}

load_kernel_client() {
    load_module rtrs-core && load_module rtrs-client && load_module rnbd-client
}

# load_kernel_server [PARAMETER=VALUE]…: with parameters for rtrs-server.
load_kernel_server() {
    load_module rtrs-core && load_module rtrs-server "$@" && load_module rnbd-server
}

unload_kernel_server() {
    rmmod rnbd_server rtrs_server
}

unload_kernel_client() {
    rmmod rnbd_client rtrs_client
}

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

# kernel_map SESSION ADDRESS DEVICE_PATH [OPTION=VALUE]…: maps with the kernel's client and prints
# the device. Options are those of map_device, such as access_mode=ro.
kernel_map() {
    local session=$1 address=$2 device_path=$3 before
    shift 3
    before=$(kernel_devices)
    echo "sessname=$session path=ip:$address device_path=$device_path $*" \
        >/sys/devices/virtual/rnbd-client/ctl/map_device || return 1
    wait_for 30 another_device "$before" || return 1
    comm -13 <(echo "$before") <(kernel_devices) | sed 's,^,/dev/,'
}

kernel_devices() { find /sys/block -name 'rnbd*' -printf '%f\n' | sort; }
another_device() { [ "$(kernel_devices)" != "$1" ]; }

# kernel_unmap DEVICE [normal|force]
kernel_unmap() {
    local name=${1##*/}
    echo "${2:-normal}" >"/sys/block/$name/rnbd/unmap_device" || return 1
    wait_for 30 device_gone "$name"
}

device_gone() { [ ! -e "/sys/block/$1" ]; }

# fio_verified FILE [OPTION]…: writes, and reads back with checksums. Its status is fio's under pipefail.
fio_verified() {
    local file=$1
    shift
    fio --name=verified --filename="$file" --ioengine=libaio --direct=1 --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --verify_dump=0 --randrepeat=1 --output-format=normal \
        --size=16m "$@" | grep -E 'IOPS=|err=|verify:'
}

# exercise DEVICE: verified I/O of several sizes, flushes, and a discard.
exercise() {
    fio_verified "$1" --rw=randwrite --bs=4k --size=8m
    fio_verified "$1" --rw=write --bs=128k
    fio_verified "$1" --rw=randrw --bsrange=512-124k --size=8m
    fio_verified "$1" --rw=randwrite --bs=4k --size=512k --fsync=8
    blkdiscard --offset 0 --length 1MiB "$1"
}

# exercise_files DEVICE: a file system on it is filled, and sound after it was unmounted.
exercise_files() {
    local place=/run/files
    mkdir -p "$place"
    mkfs.ext4 -q "$1"
    mount "$1" "$place"
    cp -r /usr/share/perl5 "$place"
    umount "$place"
    e2fsck -fn "$1"
    mount -o ro "$1" "$place"
    diff -r /usr/share/perl5 "$place/perl5"
    umount "$place"
}

# same DEVICE DEVICE: equal to the last byte, read past the page cache.
same() {
    [ "$(checksum "$1")" = "$(checksum "$2")" ] || fail "$1 and $2 differ"
}

checksum() {
    dd if="$1" bs=1M iflag=direct status=none | md5sum | cut -d' ' -f1
}

# Two more soft-RoCE devices, cable0 (10.9.2.1) and cable1 (10.9.2.2), joined by a virtual cable:
# what they exchange can be captured, delayed and cut, while a device that talks to itself, as rxe0
# and rxe1 do, never touches its network interface.
cable_up() {
    local number
    ip link add wire0 type veth peer name wire1
    for number in 0 1; do
        ip address add "10.9.2.$((number + 1))/24" dev "wire$number"
        sysctl -qw "net.ipv4.conf.wire$number.accept_local=1" "net.ipv4.conf.wire$number.rp_filter=0"
        ip link set "wire$number" up
    done
    route_over_cable
    for number in 0 1; do
        rdma link add "cable$number" type rxe netdev "wire$number"
    done
}

# Both addresses are local, so the local table, which would keep their traffic inside, comes last but
# for what arrives. The neighbours are written down because the kernel's address resolution for RDMA
# may miss the answer to its first question and then waits half a minute.
route_over_cable() {
    ip neighbour replace 10.9.2.2 dev wire0 lladdr "$(cat /sys/class/net/wire1/address)"
    ip neighbour replace 10.9.2.1 dev wire1 lladdr "$(cat /sys/class/net/wire0/address)"
    ip rule add pref 10 iif wire0 lookup local
    ip rule add pref 10 iif wire1 lookup local
    ip route add 10.9.2.2 dev wire0 src 10.9.2.1 table 100
    ip route add 10.9.2.1 dev wire1 src 10.9.2.2 table 101
    ip rule add pref 20 from 10.9.2.1 to 10.9.2.2 lookup 100
    ip rule add pref 20 from 10.9.2.2 to 10.9.2.1 lookup 101
    ip rule add pref 100 lookup local
    ip rule del pref 0
}
