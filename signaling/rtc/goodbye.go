// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"encoding/binary"
	"net"
	"sync"
	"time"

	"github.com/pion/stun"
)

// A relay over UDP that nobody gives back stays with its server until it expires,
// ten minutes by default, and counts against what its user may have. pion asks for
// the end of one with a single packet and closes the socket behind it, so whether
// the request arrived, or came with a nonce that is still good, it never learns.
// Here such a socket stays open until the server has answered, for goodbyeTime at
// most. A relay over TCP or TLS ends with its connection.

const (
	// goodbyeTime bounds how long the end of a peer waits for TURN servers.
	goodbyeTime = time.Second
	// goodbyeAgain is the time from one request that gives a relay back to the next.
	goodbyeAgain = 200 * time.Millisecond
	// goodbyeNonces is how often a server may ask for another nonce.
	goodbyeNonces = 3
)

const (
	allocateRequest = 0x0003
	allocateSuccess = 0x0103
	allocateError   = 0x0113
	refreshRequest  = 0x0004
	refreshSuccess  = 0x0104
	refreshError    = 0x0114
)

// lease is what a socket knows of the relay that was got through it. It sees what
// is sent and received, and is safe for concurrent use.
type lease struct {
	urls []*stun.URI // of the servers, with credentials
	// over is closed when the server has answered the request that gives the relay
	// back.
	over chan struct{}

	mu      sync.Mutex // guards the fields below
	held    bool       // there may be a relay
	request *stun.Message
	to      net.Addr // of request
	nonces  int      // that the server wanted since
}

func newLease(urls []*stun.URI) *lease { return &lease{urls: urls, over: make(chan struct{})} }

// turnKind is the type of a message that asks for a relay or for its end, or
// answers that; 0 for others.
func turnKind(p []byte) uint16 {
	if !isSTUN(p) {
		return 0
	}
	switch kind := binary.BigEndian.Uint16(p); kind {
	case allocateRequest, allocateSuccess, allocateError, refreshRequest, refreshSuccess, refreshError:
		return kind
	}
	return 0
}

// sends sees a packet before it is sent.
func (l *lease) sends(p []byte, to net.Addr) {
	switch turnKind(p) {
	case allocateRequest:
		// The first request has no credential, and no server gives a relay for it.
		if b, ok := parseBinding(p); ok && b.sealed != 0 {
			l.hold(true)
		}
	case refreshRequest:
		m := &stun.Message{Raw: append([]byte(nil), p...)}
		if m.Decode() != nil {
			return
		}
		if v, err := m.Get(stun.AttrLifetime); err != nil || len(v) != 4 || binary.BigEndian.Uint32(v) != 0 {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.request == nil {
			l.request, l.to = m, to
		}
	}
}

// hears sees a sound packet that came. What it returns is to be sent.
func (l *lease) hears(p []byte) (answer []byte, to net.Addr) {
	switch turnKind(p) {
	case allocateSuccess:
		l.hold(true)
	case allocateError:
		l.hold(false)
	case refreshSuccess, refreshError:
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.request == nil || [12]byte(p[8:stunHeader]) != l.request.TransactionID {
			break
		}
		if again := l.renewed(p); again != nil {
			l.request = again
			return again.Raw, l.to
		}
		l.endLocked()
	}
	return nil, nil
}

// renewed is the request once more, with the nonce that an answer to it asks for;
// nil if it asks for none. The caller holds mu.
func (l *lease) renewed(answer []byte) *stun.Message {
	m := &stun.Message{Raw: append([]byte(nil), answer...)}
	var code stun.ErrorCodeAttribute
	var user stun.Username
	var realm stun.Realm
	var nonce stun.Nonce
	if m.Decode() != nil || code.GetFrom(m) != nil || code.Code != stun.CodeStaleNonce || nonce.GetFrom(m) != nil ||
		user.GetFrom(l.request) != nil || realm.GetFrom(l.request) != nil || l.nonces == goodbyeNonces {
		return nil
	}
	l.nonces++
	for _, u := range l.urls {
		key := stun.NewLongTermIntegrity(user.String(), realm.String(), u.Password)
		if u.Username != user.String() || key.Check(l.request) != nil {
			continue
		}
		again, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodRefresh, stun.ClassRequest),
			stun.RawAttribute{Type: stun.AttrLifetime, Value: make([]byte, 4)}, user, realm, nonce, key, stun.Fingerprint)
		if err != nil {
			return nil
		}
		return again
	}
	return nil
}

// repeat is the request as long as it has no answer, to be sent again.
func (l *lease) repeat() (request []byte, to net.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.request == nil || !l.held {
		return nil, nil
	}
	return l.request.Raw, l.to
}

func (l *lease) hold(held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = held && l.request == nil
}

// mayStand says whether the server may have a relay that was not given back.
func (l *lease) mayStand() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}

// ending says whether a relay was given back and the server has not said so.
func (l *lease) ending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held && l.request != nil
}

// endLocked notes that there is nothing to wait for any more. The caller holds mu.
func (l *lease) endLocked() {
	if l.held && l.request != nil {
		close(l.over)
	}
	l.held = false
}

// sayGoodbye waits until the servers of all leases that end have answered, or end
// is called.
func (n *guardedNet) sayGoodbye() {
	var leaving []*guardedUDP
	n.mu.Lock()
	for _, c := range n.sockets {
		if c != nil && c.lease.ending() {
			leaving = append(leaving, c)
		}
	}
	n.mu.Unlock()
	again := time.NewTicker(goodbyeAgain)
	defer again.Stop()
	for i := 0; i < len(leaving); {
		select {
		case <-leaving[i].lease.over:
			i++
		case <-again.C:
			for _, c := range leaving[i:] {
				if request, to := c.lease.repeat(); request != nil {
					_, _ = c.UDPConn.WriteTo(request, to) // lost is lost, whoever lost it
				}
			}
		case <-n.ended:
			return
		}
	}
}
