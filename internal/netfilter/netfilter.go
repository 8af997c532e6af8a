// Package netfilter closes addresses to what runs in a network namespace, with a
// table of its own in the kernel's nf_tables. It goes with the namespace.
package netfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// table is the name of the table. Nobody in a container may change it without
// CAP_NET_ADMIN.
const table = "deckhand"

const dnsPort = 53

// Block refuses every packet that is made in a network namespace for one of the
// blocked addresses, except questions to resolvers: on some clouds the metadata
// address is the name server too. ns is an open network namespace, or 0 for this
// process's own. What an earlier call has set is replaced, at once.
//
// It is not for packets that go past IP, which take CAP_NET_RAW.
func Block(ns int, blocked []netip.Prefix, resolvers []netip.Addr) error {
	return explain(within(ns, func() error { return block(blocked, resolvers) }))
}

func block(blocked []netip.Prefix, resolvers []netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: table}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	// Before connection tracking and any translation of addresses.
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw,
	})
	add := func(parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	for _, r := range resolvers {
		for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add(to(netip.PrefixFrom(r, r.BitLen())), protocol(p), port(dnsPort), []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}})
		}
	}
	for _, p := range blocked {
		// An answer, and not silence: whoever asks knows at once. A connection
		// that is being made takes only a reset for one.
		add(to(p), protocol(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
		add(to(p), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	}
	return c.Flush()
}

// to matches packets for an address of a prefix.
func to(p netip.Prefix) []expr.Any {
	p = p.Masked()
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4) // RFC 791
	if p.Addr().Is6() {
		family, offset, length = unix.NFPROTO_IPV6, 24, 16 // RFC 8200
	}
	mask := make([]byte, length)
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// protocol matches packets of a protocol above IP.
func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// port matches packets of TCP or UDP for a port.
func port(number uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)},
	}
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("this process may not change the network of the container: %w", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the kernel lacks nf_tables or a part of it (modules nf_tables, nft_reject_inet): %w", err)
	}
	return err
}

// Resolvers reads the name servers from a resolv.conf(5). What cannot be read is
// none.
func Resolvers(file string) []netip.Addr {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var found []netip.Addr
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			found = append(found, addr.WithZone("").Unmap())
		}
	}
	return found
}

// ParsePrefix reads an address or a CIDR.
func ParsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is no address and no CIDR", s)
	}
	if p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is an IPv4 address in IPv6; write it as IPv4", s)
	}
	return p.Masked(), nil
}
