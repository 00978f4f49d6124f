#!/usr/bin/env bash
# Runs in the guest, as its first process: session.sh LIMIT COMMAND…
# Brings up two soft-RoCE devices, runs the command for at most LIMIT seconds (0: on the console, for
# as long as it likes), leaves its output, its status and the kernel's log in the job folder, and
# switches the machine off.
set -u
job=/run/job
limit=$1
shift

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
ulimit -l unlimited
ulimit -n 65536
hostname guest
ln -s /proc/self/fd /dev/fd
ip link set lo up
# The console has what came before.
dmesg --clear

# rxe_device NUMBER: rxe attaches to no loopback device, but to a dummy one.
rxe_device() {
    ip link add "d$1" type dummy &&
        ip address add "10.9.$1.1/24" dev "d$1" &&
        ip link set "d$1" up &&
        rdma link add "rxe$1" type rxe netdev "d$1"
}

# rxe looks for crc32 when it loads and does not load the module by itself.
modprobe -a crc32_generic rdma_rxe rdma_cm rdma_ucm ib_uverbs &&
    rxe_device 0 && rxe_device 1 || echo "soft-RoCE did not come up" >&2

# finish STATUS
finish() {
    # A dummy device has no speed, and rxe says so again at every look at it.
    dmesg | grep -v 'speed is unknown' >"$job/dmesg.log"
    echo "$1" >"$job/status"
    busybox poweroff -f
}

# Too long: says what runs and, in the kernel's log, what waits for what.
give_up() {
    {
        ps --ppid 2 -p 2 --deselect -o pid,stat,time,wchan:20,args
        echo "not done after $limit s; dmesg.log has the tasks that are blocked"
    } >>"$job/output.log"
    echo w >/proc/sysrq-trigger
    finish 124
}

if [ "$limit" = 0 ]; then
    setsid --ctty --wait "$@" <>/dev/ttyS0 >&0 2>&1
    finish $?
fi
# A command that the kernel does not let go cannot be killed, so it is not waited for either.
(sleep "$limit"; give_up) &
"$@" >"$job/output.log" 2>&1 </dev/null
finish $?
