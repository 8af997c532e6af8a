package rig

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The networks of an engine are taken from a block of addresses that only this
// engine has. Docker's own choice is one set of 31 networks for all daemons of
// a machine, and a network whose daemon was killed keeps its bridge: in the end
// no daemon starts. All blocks are in 198.18.0.0/15, which is set aside for
// tests of network devices (RFC 2544) and leads nowhere.
var (
	sharedBlock   = netip.MustParsePrefix("198.18.0.0/18")
	privateBlocks = netip.MustParsePrefix("198.19.0.0/16")
)

const (
	privateBits = 21 // 32 blocks of 32 networks each
	networkBits = 26 // 61 containers and the gateway
)

// poolOption makes dockerd take its networks from block.
func poolOption(block netip.Prefix) string {
	return fmt.Sprintf("--default-address-pool=base=%s,size=%d", block, networkBits)
}

// reserveBlock finds a block that no other daemon of the machine has, and
// removes the bridges that a dead one left in it. The block is held until the
// returned function is called or the process ends.
func reserveBlock() (block netip.Prefix, release func(), err error) {
	base := privateBlocks.Masked().Addr().As4()
	for n := range 1 << (privateBits - privateBlocks.Bits()) {
		f, err := os.OpenFile(fmt.Sprintf("/var/tmp/deckhand-rig-block-%d", n), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return netip.Prefix{}, nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			continue
		}
		addr := base
		addr[2] = byte(n << (24 - privateBits))
		block := netip.PrefixFrom(netip.AddrFrom4(addr), privateBits)
		if err := removeBridges(block); err != nil {
			f.Close()
			return netip.Prefix{}, nil, err
		}
		return block, func() { f.Close() }, nil
	}
	return netip.Prefix{}, nil, errors.New("every block of addresses for a private dockerd is taken")
}

// removeBridges deletes the interfaces that have an address in block.
func removeBridges(block netip.Prefix) error {
	names, err := interfacesIn(block)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ip("link", "delete", name); err != nil && !strings.Contains(err.Error(), "Cannot find device") {
			return err
		}
	}
	return nil
}

func interfacesIn(block netip.Prefix) (names []string, err error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && block.Contains(prefix.Addr()) {
				names = append(names, i.Name)
				break
			}
		}
	}
	return names, nil
}
