# The kernel's own client and server. To be sourced after helpers.sh.
# shellcheck shell=bash

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
# the device. Options are those of map_device, such as access_mode=ro, dest_port=1235.
kernel_map() {
    local session=$1 address=$2 device_path=$3 before
    shift 3
    before=$(kernel_devices)
    # The port counts for what follows it only.
    echo "sessname=$session $* path=ip:$address device_path=$device_path" \
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
