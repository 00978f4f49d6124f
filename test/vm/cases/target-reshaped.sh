# shellcheck shell=bash disable=SC2034
about="kernel client, our target: another queue depth after a restart; the client says why it stays away"
limit=200
long=true

prepare() { build_ours; }

# The kernel's client does not come back to a target with other chunks.
run() {
    load_kernel_client
    start_ours target -m '[1]'
    offer_memory target ram 16
    listen target 10.9.0.1 --sess-queue-depth 128
    local device
    device=$(kernel_map s1 10.9.0.1 ram)
    kill_ours target
    start_ours target -m '[1]'
    offer_memory target ram 16
    listen target 10.9.0.1 --sess-queue-depth 64
    wait_for 100 client_refuses || fail "the client does not say why"
    kernel_unmap "$device" force
    stop_ours target
}

client_refuses() { dmesg | grep -q "queue depth changed"; }
