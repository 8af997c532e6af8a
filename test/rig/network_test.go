package rig

import (
	"net/netip"
	"strings"
	"testing"
)

// A machine on which daemons are killed for years keeps room for the next one.
func TestNetworksGoWithTheirDaemon(t *testing.T) {
	var block netip.Prefix
	t.Run("killed", func(t *testing.T) {
		d := NewDaemon(t)
		block = d.block
		d.Cmd(t, "network", "create", "one")
		gateway := d.Cmd(t, "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "one")
		if addr, err := netip.ParseAddr(strings.TrimSpace(gateway)); err != nil || !block.Contains(addr) {
			t.Fatalf("the gateway of the network is %q, which is not in %v (%v)", gateway, block, err)
		}
		if n := bridgesIn(t, block); n == 0 {
			t.Fatalf("no bridge has an address in %v", block)
		}
		d.Kill(t)
	})
	if n := bridgesIn(t, block); n != 0 {
		t.Errorf("%d bridges are left in %v", n, block)
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

func bridgesIn(t *testing.T, block netip.Prefix) int {
	t.Helper()
	found, err := interfacesIn(block)
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}
