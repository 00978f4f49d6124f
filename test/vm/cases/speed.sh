# shellcheck shell=bash disable=SC2034
about="kernel client on our target and on the kernel's server, side by side: a table of ratios"
limit=2400
long=true
alone=true
# To wake a processor that waits in this loop costs what it costs on hardware; to wake a halted one,
# a trip through the emulator.
boot_options=${RNBD_SPEED_BOOT-idle=poll}

# How long and how often each is measured, and in which modes.
seconds=${RNBD_SPEED_SECONDS:-1}
rounds=${RNBD_SPEED_ROUNDS:-9}
modes=${RNBD_SPEED_MODES:-N Y}
# Which I/O, as size:depth, and whether our target polls (`busy`) or sleeps (`adaptive`).
rows=${RNBD_SPEED_ROWS:-4k:1 4k:32 4k:128 124k:8}
reactor_mode=${RNBD_SPEED_REACTOR:-busy}
# What both serve: one `null` device, ours through io_uring, or each a disk in memory of its own (`ram`).
device=${RNBD_SPEED_DEVICE:-null}

# Whether only rounds count in which the two processors shared a cache (`near`), or `any`. This machine
# may move them at any time, and our target is on another one than the client.
cores=${RNBD_SPEED_CORES:-near}

# How many seconds a measurement waits for that; then it counts as it is, and the report says how many did.
patience=${RNBD_SPEED_PATIENCE:-10}

# How many pages of 2 MiB are reserved for our target, which wants some.
hugepages=${RNBD_SPEED_HUGEPAGES:-300}

prepare() { build_ours && build_core_distance; }

# Both serve the same device through the same soft-RoCE device at once, on two ports, and take turns,
# so that whatever else this machine does meets both. Leaves speed.md in the job folder.
run() {
    echo "$hugepages" >/proc/sys/vm/nr_hugepages
    case $device in
        null) fast_device null0 ;;
        ram) ram_disk 256 ;;
    esac
    local mode
    {
        echo "| always_invalidate | I/O | IOPS | mean latency | p99 latency | CPU per I/O |"
        echo "| --- | --- | --- | --- | --- | --- |"
    } >/run/job/speed.md
    for mode in $modes; do
        compare_in_mode "$mode"
    done
    cat /run/job/speed.md
    [ ! -e /run/apart ] || note "$(wc -l </run/apart) measurements had the processors apart"
}

# fast_device NAME: 1 GiB that completes at once and remembers nothing.
fast_device() {
    modprobe null_blk nr_devices=0
    mount -t configfs config /sys/kernel/config
    mkdir "/sys/kernel/config/nullb/$1"
    echo 1024 >"/sys/kernel/config/nullb/$1/size"
    echo 1 >"/sys/kernel/config/nullb/$1/power"
}

compare_in_mode() {
    local always_invalidate=false exported theirs ours row
    [ "$1" = Y ] && always_invalidate=true
    load_kernel_server "always_invalidate=$1"
    load_kernel_client
    # The kernel's server does its work at nice -20.
    launcher=${RNBD_SPEED_LAUNCHER-nice -n -11} start_ours target -m '[1]'
    case $device in
        null) exported=null0 && offer_file target disk /dev/null0 ;;
        ram) exported=ram0 && offer_memory target disk 256 ;;
    esac
    listen target 10.9.0.1:1235 "--always-invalidate=$always_invalidate"
    theirs=$(kernel_map theirs 10.9.0.1 "dev/$exported")
    ours=$(kernel_map ours 10.9.0.1 disk dest_port=1235)
    for row in $rows; do
        compare "$1" "$theirs" "$ours" "${row%:*}" "${row#*:}"
    done
    kernel_unmap "$theirs"
    kernel_unmap "$ours"
    stop_ours target
    unload_kernel_client
    unload_kernel_server
}

# compare MODE THEIRS OURS BLOCK_SIZE DEPTH: adds a row to the table.
compare() {
    local mode=$1 theirs=$2 ours=$3 size=$4 depth=$5 round
    rm -f /run/theirs.* /run/ours.*
    for ((round = 1; round <= rounds; round++)); do
        measure "$theirs" "$size" "$depth" >"/run/theirs.$round"
        measure "$ours" "$size" "$depth" >"/run/ours.$round"
    done
    {
        printf '| %s | %s, depth %s |' "$mode" "$size" "$depth"
        for ((round = 1; round <= rounds; round++)); do
            echo "$(cat "/run/theirs.$round") $(cat "/run/ours.$round")"
        done | medians
        echo
    } | tee -a /run/job/speed.md
}

# measure DEVICE BLOCK_SIZE DEPTH: IOPS, mean and p99 latency in us, CPU time per I/O in us.
measure() {
    local result=/run/speed.figures end=$((SECONDS + patience))
    while :; do
        until are_suited || [ "$SECONDS" -ge "$end" ]; do sleep 0.3; done
        run_fio "$@" >"$result"
        are_suited && break
        [ "$SECONDS" -lt "$end" ] || { echo "$*" >>/run/apart && break; }
    done
    cat "$result"
}

# Whether the processors are where they shall be. In the guest, those that share a cache are some 40 ns apart,
# others 100 or more. Our target stands still meanwhile, as it uses one of them.
are_suited() {
    local distance target
    [ "$cores" = near ] || return 0
    target=$(cat /run/target.pid)
    kill -STOP "$target"
    distance=$("$RNBD_PROGRAMS/core_distance" 0 1)
    kill -CONT "$target"
    [ "$distance" -lt 80 ]
}

# The CPU time is that of the whole guest, since the kernel's server has no process of its own.
run_fio() {
    local before result=/run/speed.json
    before=$(busy_ticks)
    fio --name=speed --filename="$1" --cpus_allowed=0 --rw=randrw --bs="$2" --iodepth="$3" --ioengine=libaio \
        --direct=1 --time_based --runtime="$seconds" --norandommap --unified_rw_reporting=1 \
        --output-format=json --output="$result"
    jq -r --argjson ticks "$(($(busy_ticks) - before))" '.jobs[0].mixed |
        "\(.iops) \(.lat_ns.mean / 1000) \(.clat_ns.percentile["99.000000"] / 1000) " +
        "\($ticks * 10000 / .total_ios)"' "$result"
}

# busy_ticks: hundredths of a second that the processors have worked.
busy_ticks() { awk '/^cpu /{print $2 + $3 + $4 + $7 + $8}' /proc/stat; }

# Lines of four figures of theirs and four of ours, one a round: the median of each as
# "theirs → ours (ratio)", the ratio being the median of the rounds' own; above 1 is better.
medians() {
    jq -Rrs 'def median: sort | if length % 2 == 1 then .[length / 2 | floor]
            else (.[length / 2 - 1] + .[length / 2]) / 2 end;
        def hundredths: . * 100 | round | "\(. / 100 | floor).\(. % 100 + 100 | tostring | .[1:])";
        [split("\n")[] | select(. != "") | split(" ") | map(tonumber)] as $rounds |
        [range(4) as $i | [$rounds[] | if $i == 0 then .[4] / .[0] else .[$i] / .[$i + 4] end] as $ratios |
            "\([$rounds[][$i]] | median | round) → \([$rounds[][$i + 4]] | median | round)" +
            (if $i == 0 then "" else " µs" end) + " (\($ratios | median | hundredths)) |"] |
        " " + join(" ")' | tr -d '\n'
}
