# Uses of a mapped device that check what they read. To be sourced after helpers.sh.
# shellcheck shell=bash disable=SC2154

# fio_verified FILE [OPTION]…: writes, and reads back with checksums. Its status is fio's under pipefail.
fio_verified() {
    local file=$1
    shift
    fio --name=verified --filename="$file" --ioengine=libaio --direct=1 --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --verify_dump=0 --randrepeat=1 --output-format=normal \
        --size=16m "$@" | grep -E 'IOPS=|err=|verify:'
}

# exercise DEVICE: verified I/O of several kinds and sizes, flushes, writes with FUA.
exercise() {
    DEVICE=$1 fio "$guest/exercise.fio" | grep -E 'IOPS=|err=|verify:'
}

# exercise_discard DEVICE: what is discarded or zeroed reads as zeroes, and its neighbours stay.
exercise_discard() {
    local device=$1
    dd if=/dev/urandom of="$device" bs=1M count=4 oflag=direct status=none
    blkdiscard --offset 1MiB --length 1MiB "$device"
    blkdiscard --zeroout --offset 3MiB --length 512KiB "$device"
    equal "a discarded MiB" "$(zero_bytes "$device" 1 1)" 1048576
    equal "a zeroed half MiB" "$(zero_bytes "$device" 6 1 512K)" 524288
    [ "$(zero_bytes "$device" 0 1)" -lt 100000 ] || fail "a MiB was lost before the discarded one"
    [ "$(zero_bytes "$device" 7 1 512K)" -lt 100000 ] || fail "half a MiB was lost behind the zeroes"
}

# zero_bytes DEVICE SKIP COUNT [BLOCK]: how many bytes of these blocks are zero.
zero_bytes() {
    dd if="$1" bs="${4:-1M}" skip="$2" count="$3" iflag=direct status=none |
        tr -dc '\0' | wc -c
}

# exercise_files DEVICE TYPE: a file system on it is filled with this project's sources, trimmed, and
# sound and complete after it was unmounted.
exercise_files() {
    local device=$1 type=$2 place=/run/files
    mkdir -p "$place"
    "mkfs.$type" -q "$device"
    mount "$device" "$place"
    cp -r "$RNBD_SOURCES/lib" "$place"
    rm -r "$place/lib/wire"
    fstrim "$place"
    umount "$place"
    check_files "$device" "$type"
    mount -o ro "$device" "$place"
    diff -r --exclude wire "$RNBD_SOURCES/lib" "$place/lib"
    umount "$place"
}

# check_files DEVICE TYPE
check_files() {
    case $2 in
        ext4) e2fsck -fn "$1" ;;
        xfs) xfs_repair -n "$1" >/dev/null ;;
    esac
}
