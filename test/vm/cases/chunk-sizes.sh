# shellcheck shell=bash disable=SC2034
about="kernel client, our target: chunks of other sizes than the usual, powers of two or not, both modes"
limit=300
long=true

prepare() { build_ours; }

run() {
    load_kernel_client
    local chunk always_invalidate
    for chunk in 8192 28672 135168 262144; do
        for always_invalidate in false true; do
            use_chunks "$chunk" "$always_invalidate"
        done
    done
}

# use_chunks BYTES ALWAYS_INVALIDATE: requests as large as they may be, and twice that, which the
# kernel has to split.
use_chunks() {
    local device largest=$(($1 - 4096))
    local blocks=$((16777216 / largest))
    [ "$blocks" -lt 64 ] || blocks=64
    note "chunks of $1 bytes, always_invalidate=$2"
    start_ours target -m '[1]'
    offer_memory target ram 16
    listen target 10.9.0.1 --max-chunk-size "$1" --sess-queue-depth 64 "--always-invalidate=$2"
    device=$(kernel_map s1 10.9.0.1 ram)
    equal "the largest request" "$(cat "/sys/block/${device##*/}/queue/max_hw_sectors_kb")" "$((largest / 1024))"
    fio_verified "$device" --rw=randwrite --bs=4k --size=4m
    fio_verified "$device" --rw=write --bs="$largest" --size="$((largest * blocks))"
    fio_verified "$device" --rw=randwrite --bs="$((largest * 2))" --size="$((largest * 16))"
    equal "what the target has" "$(memory_checksum target ram-bdev)" "$(checksum "$device")"
    kernel_unmap "$device"
    stop_ours target
}
