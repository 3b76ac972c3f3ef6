// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Chains of a table of ours.
const (
	chainLedger  = "ledger"
	chainForward = "forward"
	chainInput   = "input"
	chainLeave   = "leave"
)

// nftBuffer takes the largest table in one transaction, in bytes.
const nftBuffer = 4 << 20

// firewall is the wanted content of the table of an interface. It is put in
// force as a whole or not at all.
type firewall struct {
	mesh string
	// mtu of the mesh interface.
	mtu int
	// own are the host's addresses in the mesh.
	own []netip.Prefix
	// networks, serve and masquerade are those of Config.
	networks, serve, masquerade []netip.Prefix
	// siblings are the interfaces of other nodes on this host that serve, sorted.
	siblings []string
	// ledger are settings that outlive the interface.
	ledger []setting
	// router4 and router6 are set when somebody else made the whole host a router.
	router4, router6 bool
}

// empty reports whether no table is needed.
func (f *firewall) empty() bool { return len(f.serve)+len(f.ledger) == 0 }

// fingerprint tells one content from another.
func (f *firewall) fingerprint() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "2 %q", []any{f.mesh, f.mtu, f.own, f.networks, f.serve, f.masquerade, f.siblings, f.notes(), fmt.Sprint(f.router4, f.router6)}))
	return hex.EncodeToString(sum[:16])
}

// notes are the text forms of the ledger.
func (f *firewall) notes() []string {
	list := make([]string, 0, len(f.ledger))
	for _, s := range f.ledger {
		list = append(list, s.note())
	}
	return list
}

// nft opens the kernel's packet filter. Each operation has a socket of its own.
func nft() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(nftBuffer) }))
}

// without reports whether an error says that the kernel has no nftables.
func without(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// table is what the kernel knows by a table of ours.
type table struct {
	*nftables.Table
	// owner is the name of the interface that the table is for; empty if it does
	// not say.
	owner string
	// state is the fingerprint of its content.
	state  string
	ledger []setting
	// rules are how many each chain has.
	rules map[string]int
}

// tables returns all tables of our kind.
func tables(c *nftables.Conn) ([]*table, error) {
	all, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	var list []*table
	var chains []*nftables.Chain
	for _, t := range all {
		if !strings.HasPrefix(t.Name, tablePrefix) {
			continue
		}
		if chains == nil {
			if chains, err = c.ListChainsOfTableFamily(nftables.TableFamilyINet); err != nil {
				return nil, fmt.Errorf("list chains of nftables: %w", err)
			}
		}
		found, err := readTable(c, t, chains)
		if err != nil {
			return nil, err
		}
		list = append(list, found)
	}
	return list, nil
}

// readTable reads a table. Notes that are not ours are left out: somebody else
// wrote them.
func readTable(c *nftables.Conn, t *nftables.Table, chains []*nftables.Chain) (*table, error) {
	found := &table{Table: t, rules: make(map[string]int)}
	for _, chain := range chains {
		if chain.Table.Name != t.Name {
			continue
		}
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return nil, fmt.Errorf("list rules of table %s: %w", t.Name, err)
		}
		found.rules[chain.Name] = len(rules)
		if chain.Name != chainLedger {
			continue
		}
		for _, r := range rules {
			note, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			found.take(strings.TrimRight(note, "\x00"))
		}
	}
	return found, nil
}

// take takes a note of the ledger.
func (t *table) take(note string) {
	if name, ok := strings.CutPrefix(note, noteInterface); ok && tableName(name) == t.Name {
		t.owner = name
	}
	if state, ok := strings.CutPrefix(note, noteState); ok {
		t.state = state
	}
	if s, err := parseSetting(note); err == nil {
		t.ledger = append(t.ledger, s)
	}
}

// is reports whether the table has the content of f.
func (t *table) is(f *firewall, chains []chain) bool {
	if t.state != f.fingerprint() || len(t.rules) != len(chains) {
		return false
	}
	return !slices.ContainsFunc(chains, func(c chain) bool {
		n, ok := t.rules[c.Name]
		return !ok || n != len(c.rules)
	})
}

// siblings are the interfaces but name that tables of ours are for, sorted.
func siblings(all []*table, name string) []string {
	var list []string
	for _, t := range all {
		if t.owner != "" && t.owner != name && interfaceName(t.owner) {
			list = append(list, t.owner)
		}
	}
	slices.Sort(list)
	return list
}

// put makes the table in the kernel what f says, in one transaction; an empty
// one goes. It reports whether it changed something.
func (f *firewall) put(before func(what string)) (changed bool, err error) {
	c, err := nft()
	if err != nil {
		return false, err
	}
	all, err := tables(c)
	if err != nil {
		return false, err
	}
	f.siblings = siblings(all, f.mesh)
	name, chains := tableName(f.mesh), f.chains()
	i := slices.IndexFunc(all, func(t *table) bool { return t.Name == name })
	if f.empty() && i < 0 || !f.empty() && i >= 0 && all[i].is(f, chains) {
		return false, nil
	}
	before("nftables")
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	if i >= 0 {
		c.DelTable(t)
	}
	if !f.empty() {
		c.AddTable(t)
		for i := range chains {
			chains[i].Table = t
			c.AddChain(chains[i].Chain)
			for _, r := range chains[i].rules {
				r.Table, r.Chain = t, chains[i].Chain
				c.AddRule(r)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("put nftables table %s: %w", name, err)
	}
	return true, nil
}
