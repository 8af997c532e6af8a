package rig

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// A machine on which daemons are killed for years keeps room for the next one.
func TestNetworksGoWithTheirDaemon(t *testing.T) {
	var bridges []string
	t.Run("killed", func(t *testing.T) {
		d := NewDaemon(t)
		block := d.block
		d.Cmd(t, "network", "create", "one")
		gateway := d.Cmd(t, "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "one")
		addr, err := netip.ParseAddr(strings.TrimSpace(gateway))
		if err != nil || !block.Contains(addr) {
			t.Fatalf("the gateway of the network is %q, which is not in %v (%v)", gateway, block, err)
		}
		if bridges, err = interfacesIn(block); err != nil || len(bridges) == 0 {
			t.Fatalf("%q have an address in %v, %v", bridges, block, err)
		}
		d.Kill(t)
	})
	// The block may be another daemon's already.
	for _, name := range bridges {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("the bridge %s is left", name)
		}
	}
}

func TestBlocksAreExclusive(t *testing.T) {
	one, release, err := reserveBlock()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	two, releaseTwo, err := reserveBlock()
	if err != nil {
		t.Fatal(err)
	}
	defer releaseTwo()
	if one.Overlaps(two) || one.Overlaps(sharedBlock) || two.Overlaps(sharedBlock) {
		t.Errorf("%v, %v and %v overlap", one, two, sharedBlock)
	}
}
