# Load that knows what a device must hold, also when the peer goes away. To be sourced after
# helpers.sh.
# shellcheck shell=bash disable=SC2154

# start_stamps DEVICE: returns when it writes.
start_stamps() {
    rm -f /run/stamps.report
    python3 "$guest/stamps.py" "$1" 256 /run/stamps.report >/run/stamps.result &
    stamps_pid=$!
    wait_for 60 stamps_are writing || fail "no load"
}

# stamps_are failing|writing: what the load has come to.
stamps_are() { [ "$(tail -1 /run/stamps.report 2>/dev/null)" = "$1" ]; }

# stop_stamps: checks all that was written, and says how many writes failed.
stop_stamps() {
    kill "$stamps_pid"
    wait "$stamps_pid" || fail "the device lost something"
    cat /run/stamps.result
}
