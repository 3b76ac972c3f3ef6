// SPDX-License-Identifier: Apache-2.0

package core

import "encoding/binary"

// maxKeys bounds the work for one request.
const maxKeys = 4

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
	account, key, known := c.verify(r, s)
	if known != Known {
		if known == Unknown {
			c.challenge(r, codeUnauthenticated)
		}
		return false
	}
	if !c.nonces.good(r.wall, r.flow.Client, m.nonce) {
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
// for a user that does not exist as for one with another key. Pending means
// that r waits for a Verdict.
func (c *Core) verify(r *request, s signer) (Account, Key, Knowledge) {
	m := &r.msg
	account, known := c.account(r)
	if known == Pending {
		return Account{}, Key{}, Pending
	}
	if known != Known || len(account.Keys) == 0 {
		s.key = c.decoy
		s.verifies(m)
		return Account{}, Key{}, Unknown
	}
	for _, key := range account.Keys[:min(len(account.Keys), maxKeys)] {
		s.key = key
		if s.verifies(m) {
			return account, key, Known
		}
	}
	return Account{}, Key{}, Unknown
}

// account asks who the username of r is. When that is Pending, the driver is asked.
func (c *Core) account(r *request) (Account, Knowledge) {
	m := &r.msg
	username, ok := m.username, m.has&hasUsername != 0
	if !ok && c.cfg.Offers.Userhash && len(m.userhash) == sha256Len {
		username, ok = c.cfg.Authenticator.Reveal(m.userhash)
	}
	if !ok || len(username) == 0 || string(m.realm) != c.cfg.Realm {
		return Account{}, Unknown
	}
	if v := c.waiting.verdict; v != nil {
		if v.ok {
			return v.account, Known
		}
		return Account{}, Unknown
	}
	account, known := c.cfg.Authenticator.Authenticate(r.wall, username)
	if known == Pending {
		c.ask(r, username)
	}
	return account, known
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
