#!/usr/bin/env bash
# Rules about the repo that no other tool checks: file sizes, leftovers, unsafe, arrows.
source "$(dirname "$0")/common.sh"
cd "$repo"
need_packages git=git
# Without a list of files every rule would hold.
git ls-files --error-unmatch Cargo.toml >/dev/null || die "not a checkout that git can read: $repo"

status=0
complain() { printf '%s\n' "$*"; status=1; }

# A file is one thing. Tests may be longer.
while read -r lines file; do
    complain "$file: $lines lines; split it at 700"
done < <(git ls-files '*.rs' ':!*tests*' | xargs wc -l | awk '$2 != "total" && $1 > 700')

while IFS= read -r hit; do
    complain "leftover: $hit"
done < <(git grep -nE 'todo!\(|unimplemented!\(|FIXME|\bXXX\b|#\[ignore' -- '*.rs' '*.sh' '*.py' ':!scripts/check_repo.sh')

# `unsafe` lives in the modules named here and nowhere else. lib/spdk is all calls of C;
# in app/spdk_rnbd it is the way in (entry), memory of SPDK's users (memory), and a value that only
# SPDK's application thread may touch (app_only).
allowed='^(lib/mem/src/(lending|span|streaming|mapping|memory)\.rs|lib/spdk/src/|app/spdk_rnbd/src/(entry|app_only|device/memory)\.rs|app/fio_rnbd/src/sys/|lib/fabric/src/tcp/sys\.rs|lib/verbs/src/sys/|lib/bdev/src/(uring/|testing\.rs)|lib/fabric/src/conformance/backpressure\.rs|reactor/src/|lib/nbd/(src/sys|tests/support/mod)\.rs)'
while IFS= read -r file; do
    [[ $file =~ $allowed ]] || complain "$file: unsafe is not expected here"
done < <(git grep -lE '\bunsafe (impl|fn|\{|extern)' -- '*.rs')

# Which crate may depend on which of ours; everything else is an arrow pointing the wrong way.
declare -A arrows=(
    [lib/base]=""
    [lib/wire]="base"
    [lib/mem]=""
    [lib/fabric]="base mem"
    [lib/bdev]="base mem"
    [lib/rtrs]="base wire"
    [lib/rnbd]="base bdev fabric mem rtrs wire"
    [lib/nbd]="base bdev mem"
    [lib/verbs]="base fabric mem"
    [lib/spdk-sys]=""
    [lib/spdk]="base bdev mem spdk"
    [bdev_rnbd]="base bdev fabric mem proto rtrs wire"
    [reactor]="base"
    [rpc]="base"
)
for crate in "${!arrows[@]}"; do
    deps=$(sed -n '/^\[dependencies\]/,/^\[/s/^rnbd-\([a-z]*\)\b.*/\1/p' "$crate/Cargo.toml")
    for dep in $deps; do
        [[ " ${arrows[$crate]} " == *" $dep "* ]] || complain "$crate must not depend on rnbd-$dep"
    done
done

exit $status
