#!/usr/bin/env bash
# Measures rnbd over TCP against other servers on the same two cores in one run, and prints a table.
#
#   scripts/bench.sh [--runs N] [--seconds N] [--spdk DIR] [--bdevperf DIR] [--without-nbdkit]
#                    [--nbd] [--fio] [--instructions] [--cores near|far|any] [--out FILE]
#
# nbdkit's memory plugin with fio's nbd engine is measured unless it is left out, and SPDK's NVMe/TCP
# with bdevperf where --spdk names a build of it. --bdevperf names a build with shared libraries, whose
# bdevperf measures rnbd's bdev in SPDK. --nbd compares the NBD export with nbdkit instead, --fio the
# fio engine with rnbd_perf and fio's nbd engine. Targets run on core 0, initiators on core 1.
source "$(dirname "$0")/common.sh"
need_rust
need_packages python3=python3 fio=fio nbdkit=nbdkit
build_release
(cd "$repo" && cargo build --release --quiet --locked -p rnbd-reactor --example core_distance)
case " $* " in *" --instructions "*)
    need_packages valgrind=valgrind
    (cd "$repo" && cargo build --release --quiet --locked -p bdev-rnbd --example io_count) ;;
esac
case " $* " in *" --fio "*) build_fio_engine ;; esac
case " $* " in *" --bdevperf "*)
    dir=$(sed -n 's/.* --bdevperf \([^ ]*\) .*/\1/p' <<<" $* ")
    (cd "$repo" && SPDK_DIR=$dir cargo build --release --quiet --locked -p spdk_rnbd --features spdk)
    export LD_LIBRARY_PATH="$dir/build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
esac
exec python3 "$repo/scripts/perf/bench.py" "$@"
