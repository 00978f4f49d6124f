# shellcheck shell=bash disable=SC2034
about="links and devices that go and come back, targets that restart, under load of ours and of the kernel: a table"
limit=${RNBD_FAULTS_LIMIT:-1500}
long=true
alone=true

# Which scenarios of guest/device_faults.py, and how often each fault.
scenarios=${RNBD_FAULTS_SCENARIOS:-ours-to-ours two-paths kernel-to-ours ours-to-kernel}
rounds=${RNBD_FAULTS_ROUNDS:-3}

prepare() {
    build_ours
    need_packages python3=python3
}

run() {
    ram_disk 16
    switched_cable_up
    # shellcheck disable=SC2086
    python3 "$guest/device_faults.py" --rounds "$rounds" ${RNBD_FAULTS_ARGS:-} $scenarios
}
