# shellcheck shell=bash disable=SC2034
about="one, two and all RDMA devices deleted and added under verified load over two paths"
limit=200
alone=true

prepare() {
    build_ours
    need_packages python3=python3
}

run() {
    ram_disk 16
    switched_cable_up
    python3 "$guest/device_faults.py" --load 10 --only deleted two-paths
}
