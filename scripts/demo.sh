#!/usr/bin/env bash
# The main job on real data: a target exports a disk image over TCP, an initiator attaches to it and
# offers it as NBD; every byte is compared, a file system is written to, and I/O is measured.
# Sets up what a fresh Debian 12 lacks. Ends in one line, "demo: PASS …" or "demo: FAIL: why".
source "$(dirname "$0")/common.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/rnbd-demo.XXXXXX")
target_sock=$work/target.sock
initiator_sock=$work/initiator.sock
pids=()
mounted=
step="setting up"

finish() {
    local status=$?
    trap - EXIT
    [ -z "$mounted" ] || umount_nbd || true
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true
    done
    if [ $status -eq 0 ]; then
        rm -rf "$work"
        echo "demo: PASS in $SECONDS s"
    else
        for log in "$work"/*.log; do
            [ -s "$log" ] && { echo "--- ${log##*/}"; tail -5 "$log"; } >&2
        done
        rm -rf "$work"
        echo "demo: FAIL: $step"
    fi
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

begin() {
    step=$1
    say "$1"
}

target() { "$bin/rnbd_rpc" -s "$target_sock" "$@"; }
initiator() { "$bin/rnbd_rpc" -s "$initiator_sock" "$@"; }

# start NAME SOCKET CORE: a daemon of ours, answering when this returns.
start() {
    "$bin/rnbd_tgt" -r "$2" -m "[$3]" >"$work/$1.log" 2>&1 &
    pids+=($!)
    local tries
    for tries in $(seq 100); do
        "$bin/rnbd_rpc" -s "$2" spdk_get_version >/dev/null 2>&1 && return
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    return 1
}

umount_nbd() {
    fusermount3 -u "$mounted"
    mounted=
}

# Changes the file system behind $uri: through a FUSE file where there is FUSE, else by writing back
# a changed copy. debugfs writes single bytes, nbdfuse passes them on as they are, and the export
# takes whole blocks only: nbdkit stands between them.
write_file_system() {
    local commands=$work/debugfs.cmd
    printf 'mkdir /demo\nwrite %s /demo/README.md\nrm /doc/copyright\n' "$repo/README.md" >"$commands"
    if [ -e /dev/fuse ]; then
        local disk=$work/disk
        touch "$disk"
        nbdfuse "$disk" [ nbdkit --exit-with-parent --filter=blocksize nbd uri="$uri" minblock=4096 ] \
            >"$work/nbdfuse.log" 2>&1 &
        pids+=($!)
        mounted=$disk
        local tries
        for tries in $(seq 100); do
            [ -s "$disk" ] && break
            sleep 0.1
        done
        debugfs -w -f "$commands" "$disk" >"$work/debugfs.log" 2>&1
        umount_nbd
        wait "${pids[-1]}" || true
        unset 'pids[-1]'
    else
        nbdcopy "$uri" "$work/copy.img"
        debugfs -w -f "$commands" "$work/copy.img" >"$work/debugfs.log" 2>&1
        nbdcopy --flush "$work/copy.img" "$uri"
    fi
    # debugfs succeeds whatever happens, but tells what did.
    ! grep -v -e '^debugfs' -e '^Allocated' -e '^$' "$work/debugfs.log"
}

# e2fsck forgives wrong counts; here they would be writes that were lost.
check_file_system() {
    e2fsck -fn "$image" | tee "$work/e2fsck.out"
    ! grep -q 'Fix?' "$work/e2fsck.out"
}

begin "installing what is missing"
need_rust
need_packages mkfs.ext4=e2fsprogs qemu-img=qemu-utils nbdcopy=libnbd-bin
[ ! -e /dev/fuse ] || need_packages fusermount3=fuse3 nbdkit=nbdkit
[ "$(nproc)" -ge 2 ] || { step="two processors are needed, one for each side"; exit 1; }

begin "building (a first build takes a few minutes)"
build_release
bin=$repo/target/release

begin "making a disk image with the files of this machine's /usr/share"
mkdir "$work/files"
cp -r /usr/share/doc "$work/files/doc" 2>/dev/null || true
cp -r "$repo/lib" "$repo/docs" "$work/files/"
printf 'to be removed through the initiator\n' >"$work/files/doc/copyright"
image=$work/disk.img
mkfs.ext4 -q -d "$work/files" -L rnbd-demo "$image" 512M
truncate -s 256M "$work/scratch.img"
say "$(find "$work/files" -type f | wc -l) files, $(du -sh "$work/files" | cut -f1)"

begin "starting the target on core 0 and exporting the image"
start target "$target_sock" 0
target bdev_uring_create --name image0 --filename "$image" --block-size 4096
target bdev_uring_create --name scratch0 --filename "$work/scratch.img" --block-size 512
target bdev_malloc_create --name ram0 --num-blocks 1048576 --block-size 512
target rtrs_create_transport --trtype TCP
for pair in disk=image0 scratch=scratch0 ram=ram0; do
    target rnbd_create_export --device-path "${pair%%=*}" --bdev-name "${pair#*=}" --allow-any-host
done
target rtrs_add_listener --listen-address '{"trtype":"TCP","traddr":"127.0.0.1","trsvcid":"0"}'
port=$(target rtrs_get_listeners | sed -n 's/.*"trsvcid": *"\([0-9]*\)".*/\1/p')

begin "starting the initiator on core 1 and attaching over TCP to port $port"
start initiator "$initiator_sock" 1
initiator bdev_rnbd_attach_controller --name box0 --sessname demo --trtype TCP \
    --traddr 127.0.0.1 --trsvcid "$port"
initiator bdev_rnbd_map_device --ctrlr-name box0 --device-path disk --bdev-name rnbd0
initiator nbd_start_export --bdev-name rnbd0 --address "$work/nbd.sock"
uri="nbd+unix:///?socket=$work/nbd.sock"
initiator paths

begin "comparing every byte of the image with what the initiator sees"
qemu-img compare -f raw -F raw "$image" "$uri"

begin "writing to the file system through the initiator"
write_file_system

begin "checking the file system on the target's side"
initiator bdev_rnbd_unmap_device --name rnbd0 --mode force
initiator bdev_rnbd_detach_controller --name box0
check_file_system
debugfs -R "cat /demo/README.md" "$image" 2>/dev/null | cmp - "$repo/README.md"
debugfs -R "stat /doc/copyright" "$image" 2>&1 | grep -q "File not found"

begin "stopping the initiator; rnbd_perf takes its core"
kill "${pids[-1]}"
wait "${pids[-1]}" || true
unset 'pids[-1]'

perf() {
    local device=$1
    shift
    "$bin/rnbd_perf" -m "[1]" --attach "trtype=TCP,traddr=127.0.0.1,trsvcid=$port,device=$device" \
        -t 5 -l "$@"
}
begin "4K random I/O with verification, on a file"
perf scratch -w randrw -M 50 -o 4096 -q 32 --verify
begin "4K random I/O with verification, on memory"
perf ram -w randrw -M 50 -o 4096 -q 32 --verify
begin "128K sequential I/O with verification, on memory"
perf ram -w rw -M 50 -o 131072 -q 16 --verify
