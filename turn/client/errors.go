// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"fmt"
	"net"
)

// Why there is no allocation, or none any more, or why a packet cannot leave.
// Errors of this package wrap one of these; their text says what to do.
var (
	// ErrCredential says that the server refuses user name and password.
	ErrCredential = errors.New("the server refuses the credential: get a new one, and compare the clocks of both hosts if it is new")
	// ErrForbidden says that the server's policy refuses the request.
	ErrForbidden = errors.New("the server forbids it: ask its operator to allow it")
	// ErrQuota says that the user holds as many allocations as it may.
	ErrQuota = errors.New("the user has reached its quota of allocations: close one, or wait until an old one ends")
	// ErrCapacity says that the server has no room left.
	ErrCapacity = errors.New("the server has no room for it: try another one, or later")
	// ErrFamily says that the server relays no addresses of the family asked for.
	ErrFamily = errors.New("the server does not relay that address family: ask for the other one, or another server")
	// ErrTimeout says that the server does not answer.
	ErrTimeout = errors.New("the server does not answer")
	// ErrRefused says that nothing listens where the server should be.
	ErrRefused = errors.New("nothing listens there: check host and port, and whether the server runs")
	// ErrLost says that the server does not know the allocation any more, because
	// it restarted or sees the client at another address: allocate again.
	ErrLost = errors.New("the server does not know the allocation any more: allocate again")
	// ErrBroken says that the connection to the server has ended.
	ErrBroken = errors.New("the connection to the server is broken: allocate again")
	// ErrProtocol says that the server answers what no TURN server should.
	ErrProtocol = errors.New("the answer is not TURN as RFC 8656 has it: check that a TURN server is there")
	// ErrPeers says that an allocation has no room for a further peer.
	ErrPeers = errors.New("the allocation talks to as many peers as it may: use another allocation")
	// ErrOtherFamily says that a packet is for an address of the family that the relay is not of.
	ErrOtherFamily = errors.New("the relayed address is of the other address family: use an allocation of the peer's family")
	// ErrPacket says that a packet is larger than an allocation carries.
	ErrPacket = errors.New("the packet is too large for an allocation")
)

// errClosing is for packets that come while Close works.
var errClosing = fmt.Errorf("allocation: %w", net.ErrClosed)

// CodeError is a refusal of the server. It wraps the error of this package
// that says what it means; the server's own words are left out, for they are a
// stranger's.
type CodeError struct {
	// Code is the number of ERROR-CODE; 0 when the server gave none.
	Code int

	request   string
	meaning   error
	alternate alternate // where the server, by its signature, sends its clients on
}

// Error says what was refused, with which code, and what to do.
func (e *CodeError) Error() string {
	return fmt.Sprintf("%s: code %d: %v", e.request, e.Code, e.meaning)
}

// Unwrap returns what the code means.
func (e *CodeError) Unwrap() error { return e.meaning }

// refusal makes the error for an error response to a request.
func refusal(method uint16, code int) *CodeError {
	e := &CodeError{Code: code, request: methodName(method)}
	switch code {
	case codeAlternate, 508:
		e.meaning = ErrCapacity
	case 400:
		e.meaning = fmt.Errorf("%w; some servers say so of a wrong credential", ErrProtocol)
	case 401, 441:
		e.meaning = ErrCredential
	case 403:
		e.meaning = ErrForbidden
	case 437:
		e.meaning = ErrLost
	case 440, 443:
		e.meaning = ErrFamily
	case 486:
		e.meaning = ErrQuota
	default:
		e.meaning = ErrProtocol
	}
	return e
}

func methodName(method uint16) string {
	switch method {
	case methodAllocate:
		return "allocate"
	case methodRefresh:
		return "refresh"
	case methodCreatePermission:
		return "create permission"
	default:
		return "bind channel"
	}
}
