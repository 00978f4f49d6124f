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

# The checksum of a whole block device or of a file, past the page cache.
checksum() {
    dd if="$1" bs=1M iflag=direct status=none | md5sum | cut -d' ' -f1
}
