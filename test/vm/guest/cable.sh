# Two soft-RoCE devices with a wire between them. To be sourced.
# shellcheck shell=bash

# Two more soft-RoCE devices, cable0 (10.9.2.1) and cable1 (10.9.2.2), joined by a virtual cable:
# what they exchange can be captured, delayed and cut, while a device that talks to itself, as rxe0
# and rxe1 do, never touches its network interface.
cable_up() {
    ip link add wire0 type veth peer name wire1
    cable_devices
}

# The same with a switch in the middle: while its port plug1 is down, cable1 has no link, and cable0
# has one and nobody at the other end.
switched_cable_up() {
    local number
    ip link add switch type bridge
    ip link set switch up
    for number in 0 1; do
        ip link add "wire$number" type veth peer name "plug$number"
        ip link set "plug$number" master switch up
    done
    cable_devices
}

cable_devices() {
    local number
    for number in 0 1; do
        ip address add "10.9.2.$((number + 1))/24" dev "wire$number"
        sysctl -qw "net.ipv4.conf.wire$number.accept_local=1" "net.ipv4.conf.wire$number.rp_filter=0"
        ip link set "wire$number" up
    done
    route_over_cable
    for number in 0 1; do
        rdma link add "cable$number" type rxe netdev "wire$number"
    done
}

# Both addresses are local, so the local table, which would keep their traffic inside, comes last but
# for what arrives. The neighbours are written down because the kernel's address resolution for RDMA
# may miss the answer to its first question and then waits half a minute.
route_over_cable() {
    ip neighbour replace 10.9.2.2 dev wire0 lladdr "$(cat /sys/class/net/wire1/address)"
    ip neighbour replace 10.9.2.1 dev wire1 lladdr "$(cat /sys/class/net/wire0/address)"
    ip rule add pref 10 iif wire0 lookup local
    ip rule add pref 10 iif wire1 lookup local
    ip route add 10.9.2.2 dev wire0 src 10.9.2.1 table 100
    ip route add 10.9.2.1 dev wire1 src 10.9.2.2 table 101
    ip rule add pref 20 from 10.9.2.1 to 10.9.2.2 lookup 100
    ip rule add pref 20 from 10.9.2.2 to 10.9.2.1 lookup 101
    ip rule add pref 100 lookup local
    ip rule del pref 0
}
