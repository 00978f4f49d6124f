#!/usr/bin/env bash
# Builds RNBD's engine for the fio that is installed: target/release/fio-rnbd.so.
#
#   scripts/build_fio_engine.sh [CARGO OPTION…]   for example --features rdma
#
# It is built from fio's own source, which comes from where the package came from; FIO_DIR names
# another place, with the source of the same version, configured.
source "$(dirname "$0")/common.sh"

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
fi
build_fio_engine "$@"
echo "$repo/target/release/fio-rnbd.so"
