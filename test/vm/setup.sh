# What a guest boots from, made once for each kernel version and kept under .cache/vm: the packaged
# kernel itself, the rtrs and rnbd modules that its package leaves out, and an initramfs.
# To be sourced.
# shellcheck shell=bash disable=SC2034
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"

vm=$repo/test/vm

# Leaves behind: kernel (its version), boot_image, modules and initramfs (paths).
set_up() {
    need_guest_packages
    kernel=$(packaged_kernel)
    local kept=$cache/vm/$kernel
    boot_image=/boot/vmlinuz-$kernel
    modules=$kept/modules
    initramfs=$kept/initramfs.gz
    mkdir -p "$kept"
    # Two runs may start at once; the second finds what the first has made.
    (
        flock 9
        [ -e "$modules/rnbd-server.ko" ] || build_modules "$kept"
        [ "$initramfs" -nt "$vm/guest/init" ] || pack_initramfs "$kept"
    ) 9>"$kept/lock"
}

need_guest_packages() {
    # The guest has an initramfs of its own; one for this machine would only cost time.
    export INITRD=No
    need_packages qemu-system-x86_64=qemu-system-x86 /usr/share/doc/busybox-static=busybox-static \
        cpio=cpio modprobe=kmod xz=xz-utils make=make gcc=gcc flock=util-linux \
        ip=iproute2 rdma=iproute2 sysctl=procps fio=fio rping=rdmacm-utils ibv_devices=ibverbs-utils \
        ib_write_bw=perftest /usr/share/doc/rdma-core=rdma-core \
        /usr/share/doc/ibverbs-providers=ibverbs-providers \
        /usr/include/infiniband/verbs.h=libibverbs-dev /usr/include/rdma/rdma_cma.h=librdmacm-dev \
        /usr/share/doc/linux-image-amd64=linux-image-amd64 \
        /usr/share/doc/linux-headers-amd64=linux-headers-amd64
    local series
    series=$(packaged_kernel | cut -d. -f1,2)
    need_packages "/usr/src/linux-source-$series.tar.xz=linux-source-$series"
}

# The version that the kernel's meta package stands for, as `uname -r` says it.
packaged_kernel() {
    # shellcheck disable=SC2016
    dpkg-query --show --showformat '${Depends}' linux-image-amd64 |
        sed -n 's/.*linux-image-\([^ ,]*\).*/\1/p'
}

# Unpacks the two drivers and builds them outside the kernel's tree.
build_modules() {
    local source=$1/source series log=$1/build.log
    local rtrs=$source/drivers/infiniband/ulp/rtrs rnbd=$source/drivers/block/rnbd
    series=$(cut -d. -f1,2 <<<"$kernel")
    say "building the rtrs and rnbd modules of Linux $kernel"
    rm -rf "$source" "$modules"
    mkdir -p "$source"
    tar -xJf "/usr/src/linux-source-$series.tar.xz" -C "$source" --strip-components=1 \
        "linux-source-$series/drivers/infiniband/ulp/rtrs" "linux-source-$series/drivers/block/rnbd"
    {
        make_modules "$rtrs" CONFIG_INFINIBAND_RTRS=m CONFIG_INFINIBAND_RTRS_CLIENT=m \
            CONFIG_INFINIBAND_RTRS_SERVER=m &&
            make_modules "$rnbd" CONFIG_BLK_DEV_RNBD=y CONFIG_BLK_DEV_RNBD_CLIENT=m \
                CONFIG_BLK_DEV_RNBD_SERVER=m KCFLAGS="-I$rtrs" \
                KBUILD_EXTRA_SYMBOLS="$rtrs/Module.symvers"
    } >"$log" 2>&1 || { tail -20 "$log" >&2; die "the kernel's modules do not build"; }
    mkdir -p "$modules"
    cp "$rtrs"/rtrs-*.ko "$rnbd/rnbd-client.ko" "$rnbd/rnbd-server.ko" "$modules"
}

make_modules() {
    local folder=$1
    shift
    nice make -C "/usr/src/linux-headers-$kernel" M="$folder" "$@" modules
}

# Busybox, the modules that reach the host's files, and the script that uses them.
pack_initramfs() {
    local root=$1/initramfs module path
    say "packing the guest's initramfs"
    rm -rf "$root"
    mkdir -p "$root"/{bin,modules,dev,proc,sys,host,upper,newroot}
    cp "$(dpkg -L busybox-static | grep -m1 '/busybox$')" "$root/bin/busybox"
    cp "$vm/guest/init" "$root/init"
    chmod +x "$root/init"
    for module in virtio_pci 9pnet_virtio 9p overlay; do
        modprobe -S "$kernel" --show-depends "$module"
    done | while read -r _ path _; do
        name=${path##*/}
        [ -e "$root/modules/$name" ] && continue
        cp "$path" "$root/modules/$name"
        echo "$name" >>"$root/modules/order"
    done
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$initramfs.new"
    mv "$initramfs.new" "$initramfs"
}
