# Starts guests, once set_up has been called. To be sourced.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$(dirname "${BASH_SOURCE[0]}")/build.sh"

accelerator=tcg,thread=multi
guest_pid=

# Time for a guest to boot, to bring up its devices and to write its logs, beyond its command's own.
boot_seconds=${RNBD_VM_BOOT_SECONDS:-120}

# A guest never outlives the script that started it.
end_guest() {
    [ -z "$guest_pid" ] || kill "$guest_pid" 2>/dev/null || true
}
trap end_guest EXIT
trap 'exit 130' INT TERM

# RNBD_VM_KVM=1 asks for hardware virtualisation. That /dev/kvm exists proves nothing, so a short
# boot has to succeed first.
choose_accelerator() {
    [ "${RNBD_VM_KVM:-0}" = 1 ] || return 0
    local emulation=$accelerator
    accelerator=kvm
    if ! boot_seconds=20 run_in_guest "$cache/vm/jobs/kvm-trial" 5 true 2>/dev/null; then
        say "no guest boots with KVM here: it is emulated"
        accelerator=$emulation
    fi
}

# run_in_guest JOB LIMIT COMMAND…: boots a guest, runs the command in it for at most LIMIT seconds
# and returns the command's status, or 124 if it took too long, or 125 if the guest failed it.
# Leaves output.log, dmesg.log and console.log in the folder JOB.
run_in_guest() {
    local job=$1 limit=$2 ended=0
    shift 2
    make_job "$job" "$limit" "$@"
    qemu_command "$job"
    timeout --kill-after=5 $((limit + boot_seconds)) \
        nice "${qemu[@]}" -monitor none -serial "file:$job/console.log" \
        >"$job/qemu.log" 2>&1 </dev/null &
    guest_pid=$!
    wait "$guest_pid" || ended=$?
    guest_pid=
    [ -s "$job/status" ] && return "$(cat "$job/status")"
    explain_loss "$job" "$ended"
}

# shell_in_guest JOB COMMAND…: the same on this terminal, without a limit. Ctrl-A X ends the guest.
shell_in_guest() {
    local job=$1
    shift
    make_job "$job" 0 "$@"
    qemu_command "$job"
    "${qemu[@]}" -serial mon:stdio
}

# The job folder holds what the guest is to start, and takes what it brings back.
make_job() {
    local job=$1 limit=$2 name
    shift 2
    rm -rf "$job"
    mkdir -p "$job"
    # A copy, so that editing them does not disturb a guest that runs.
    cp -r "$vm/guest" "$job/guest"
    {
        for name in $(compgen -e | grep -E '^(RNBD|RUST)_'); do
            declare -p "$name"
        done
        printf 'export RNBD_MODULES=%q RNBD_PROGRAMS=%q RNBD_SOURCES=%q TERM=%q\n' \
            "$modules" "$programs" "$repo" "${TERM:-dumb}"
        printf 'cd %q\n' "$PWD"
        printf 'exec /bin/bash'
        printf ' %q' /run/job/guest/session.sh "$limit" "$@"
        echo
    } >"$job/start"
}

# Sets qemu to the command that boots a guest with this job folder. The guest sees this machine's
# files, but cannot change them. Its kernel does not check whether its timer ticks: where this machine
# has no time for it, it would find that the timer does not work.
qemu_command() {
    local job=$1
    qemu=(qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none
        -accel "$accelerator" -cpu max -smp 2 -m 3072
        -kernel "$boot_image" -initrd "$initramfs"
        -append "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off nokaslr tsc=reliable ${boot_options:-}"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$job,mount_tag=job,security_model=none")
}

# Says why a guest left no status, and shows the end of its console.
explain_loss() {
    local job=$1 ended=$2
    if [ "$ended" = 124 ] || [ "$ended" = 137 ]; then
        say "the guest hung and was ended; its console:"
    else
        say "the guest ended without a result (qemu: status $ended $(tail -1 "$job/qemu.log")); its console:"
    fi
    { tail -40 "$job/console.log" || true; } >&2
    [ "$ended" = 0 ] && return 125
    [ "$ended" = 137 ] && return 124
    return "$ended"
}
