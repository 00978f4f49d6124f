#!/usr/bin/env bash
# A load that checks every byte, over two paths in network namespaces, under random faults every few
# seconds; in the end the target holds no more memory and descriptors than before. Needs root.
#
#   scripts/soak.sh [MINUTES]      30 if none are given
source "$(dirname "$0")/common.sh"

[ "$(id -u)" = 0 ] || die "network namespaces need root"
need_packages ip=iproute2 tc=iproute2 nft=nftables python3=python3
build_release
python3 "$repo/test/faults/faults.py" soak --paths 2 --minutes "${1:-30}"
