// SPDX-License-Identifier: Apache-2.0

package core

import "net/netip"

// Guesses counts, over all cores, the credentials that were refused by the network
// that they came from. proven says whether the address is the sender's: the request
// came on a stream, or with a nonce that was given to that address; else anybody may
// have forged it, and the two are best counted apart. It is safe for concurrent use,
// and does not block.
type Guesses interface {
	// Spent reports whether the network of an address has had so many refused that
	// no more are tried for now.
	Spent(from netip.Addr, proven bool) bool
	// Refused counts one.
	Refused(from netip.Addr, proven bool)
}

// tries reports whether the credential of r is tried, as which account. Who sends too
// many that are refused gets no more tried of those that somebody chose, existing or not: no
// answer tells which. Whoever uses an allocation of theirs goes on.
func (c *Core) tries(r *request, a *Account, known bool) bool {
	if !r.spent || a.Drawn {
		return true
	}
	held := c.flows[r.flow.key()]
	return known && held != nil && held.user == a.User
}

// spends finds out whether the network of r has had too many credentials refused.
func (c *Core) spends(r *request) bool {
	return c.cfg.Guesses != nil && c.cfg.Guesses.Spent(r.flow.Client.Addr(), r.stream || r.fresh)
}

// guessed counts a credential that was refused.
func (c *Core) guessed(r *request) {
	if c.cfg.Guesses != nil {
		c.cfg.Guesses.Refused(r.flow.Client.Addr(), r.stream || r.fresh)
	}
}
