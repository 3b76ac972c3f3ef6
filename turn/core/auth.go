// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"time"
)

// maxKeys bounds the work for one request.
const maxKeys = 4

// finding is what a credential was found to be.
type finding uint8

const (
	bad finding = iota
	good
	undecided // it may be good by a key that is still to come
)

// maxAhead is how far off the end of an account may be. What lasts longer was hardly
// meant to: who mints with milliseconds makes credentials that never end.
const maxAhead = 366 * 24 * time.Hour

// authenticate checks the long-term credential of r in the order of RFC 8489
// section 9.2.4. When it fails, r is answered.
func (c *Core) authenticate(r *request) bool {
	m := &r.msg
	switch {
	case m.has&(hasIntegrity|hasIntegritySHA256) == 0:
		c.challenge(r, codeUnauthenticated)
		return false
	case m.has&(hasUsername|hasUserhash) == 0, m.has&hasRealm == 0, m.has&hasNonce == 0:
		c.fail(r, codeBadRequest)
		return false
	}
	s := signer{kind: hasIntegrity, algorithm: algorithmMD5}
	if m.has&hasIntegritySHA256 != 0 {
		s.kind = hasIntegritySHA256
	}
	negotiated := isFeatured(m.nonce) && m.has&(hasAlgorithm|hasAlgorithms) != 0
	if negotiated {
		algorithm, ok := m.chosenAlgorithm()
		if !ok {
			c.fail(r, codeBadRequest)
			return false
		}
		s.algorithm = algorithm
	}
	r.fresh = c.nonces.good(r.wall, r.flow.Client, m.nonce)
	r.spent = c.spends(r)
	account, key, found := c.verify(r, s)
	switch found {
	case bad:
		c.challenge(r, codeUnauthenticated)
		return false
	case undecided:
		return false // no answer: the client asks again
	}
	if !r.fresh {
		c.challenge(r, codeStaleNonce)
		return false
	}
	// The answer is signed by SHA-256 to whom has negotiated, whichever of the
	// two signed the request.
	s.key, s.kind = key, hasIntegrity
	if negotiated {
		s.kind = hasIntegritySHA256
	}
	r.account, r.signer, r.proven = account, s, true
	return true
}

// chosenAlgorithm returns the password algorithm that m asks for: it must name
// one, and return the list that it was offered unchanged (bid-down protection).
func (m *message) chosenAlgorithm() (uint16, bool) {
	if m.has&hasAlgorithm == 0 || string(m.algorithms) != string(passwordAlgorithms()) || len(m.algorithm) != 4 {
		return 0, false
	}
	algorithm := binary.BigEndian.Uint16(m.algorithm)
	parameters := binary.BigEndian.Uint16(m.algorithm[2:])
	return algorithm, parameters == 0 && (algorithm == algorithmMD5 || algorithm == algorithmSHA256)
}

// verify finds the account that signed r and with which key. It takes as long
// for a user that does not exist as for one with another key.
func (c *Core) verify(r *request, s signer) (Account, Key, finding) {
	m := &r.msg
	account, known := c.account(r)
	if !c.tries(r, &account, known) {
		c.stats.Failed[FailedGuessing]++
		return Account{}, Key{}, undecided
	}
	if !known || len(account.Keys) == 0 {
		s.key = c.decoy
		s.verifies(m)
		if !known {
			return c.mismatch(r, account, FailedUnknown)
		}
		return c.mismatch(r, account, FailedMismatch)
	}
	for _, key := range account.Keys[:min(len(account.Keys), maxKeys)] {
		s.key = key
		if !s.verifies(m) {
			continue
		}
		if why, refused := c.refuses(r, &account); refused {
			c.stats.Failed[why]++
			return Account{}, Key{}, bad
		}
		return account, key, good
	}
	return c.mismatch(r, account, FailedMismatch)
}

// refuses says whether and why an account is refused that the client has a key of.
func (c *Core) refuses(r *request, a *Account) (Failure, bool) {
	switch {
	case !a.Expires.IsZero() && !r.wall.Before(a.Expires):
		return FailedExpired, true
	case !a.Expires.IsZero() && a.Expires.Sub(r.wall) > maxAhead:
		return FailedTooFar, true
	case c.cfg.Admit != nil && !c.cfg.Admit(a.User):
		return FailedRevoked, true
	default:
		return 0, false
	}
}

// mismatch is what becomes of a request that no key of its account has signed,
// which is counted as why. Who has had too many refused is not told.
func (c *Core) mismatch(r *request, a Account, why Failure) (Account, Key, finding) {
	if a.Awaited {
		c.stats.Failed[FailedAwaited]++
		return Account{}, Key{}, undecided
	}
	c.guessed(r)
	if r.spent {
		c.stats.Failed[FailedGuessing]++
		return Account{}, Key{}, undecided
	}
	c.stats.Failed[why]++
	return Account{}, Key{}, bad
}

// account asks who the username of r is.
func (c *Core) account(r *request) (Account, bool) {
	m := &r.msg
	if len(m.username) == 0 || string(m.realm) != c.cfg.Realm {
		return Account{}, false
	}
	return c.cfg.Authenticator.Authenticate(r.wall, m.username)
}

// challenge answers r with 401 or 438, realm and nonce. SHA-256 is offered
// where the offer fits: to requests of 36 bytes and more, whatever the realm.
func (c *Core) challenge(r *request, code int) {
	w := c.failure(r, code)
	w.text(attrRealm, c.cfg.Realm)
	offer := attrHeader + featuredNonce + attrHeader + len(passwordAlgorithms())
	featured := w.len()+offer <= r.room()
	w.bytes(attrNonce, c.nonces.issue(r.wall, r.flow.Client, featured))
	if featured {
		w.bytes(attrPasswordAlgorithms, passwordAlgorithms())
	}
	c.reply(r, w)
}
