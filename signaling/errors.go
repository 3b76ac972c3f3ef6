// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// named gives an error of rtc the kind by which callers of this package know
// it; the text of a description or candidate is never part of it.
func named(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rtc.ErrDescription), errors.Is(err, rtc.ErrCandidate):
		return fmt.Errorf("%w: %w", mesh.ErrInvalid, err)
	case errors.Is(err, rtc.ErrFailed), errors.Is(err, rtc.ErrRecordLimit):
		return fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
	return err
}

// refusal is what the client of an in-band channel is told about err, which
// came from the Authorizer or from parsing.
func refusal(err error) *bridge.Error {
	for _, k := range []struct {
		is   error
		code string
	}{
		{mesh.ErrInvalid, "invalid_argument"},
		{mesh.ErrDenied, "permission_denied"},
		{mesh.ErrNotFound, "not_found"},
		{mesh.ErrExhausted, "resource_exhausted"},
		{mesh.ErrUnsupported, "unimplemented"},
		{mesh.ErrPrecondition, "failed_precondition"},
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "deadline_exceeded"},
		{mesh.ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, k.is) {
			return &bridge.Error{Code: k.code, Message: err.Error()}
		}
	}
	return &bridge.Error{Code: "internal", Message: "internal error"}
}

// dialFailure is what the client of an in-band channel of node is told about a
// failed dial: the destination, and why. The text of an error that wraps
// mesh.ErrUnavailable is for clients; those of the system are not, they name
// addresses that the client did not.
func dialFailure(node mesh.NodeID, d Destination, err error) *bridge.Error {
	at := place(node, d)
	switch {
	case errors.Is(err, mesh.ErrUnavailable):
		if why := unavailability(err); why != "" {
			return &bridge.Error{Code: "unavailable", Message: why}
		}
	case errors.Is(err, context.DeadlineExceeded):
		return &bridge.Error{Code: "deadline_exceeded", Message: at + " did not answer in time"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &bridge.Error{Code: "unavailable", Message: at + " refused the connection; is something listening there?"}
	}
	return &bridge.Error{Code: "unavailable", Message: at + " cannot be reached"}
}

// place names a destination to people. What is "localhost" to the node is the
// node to its clients.
func place(node mesh.NodeID, d Destination) string {
	host := d.Host
	if ip, err := netip.ParseAddr(host); host == "" || host == "localhost" || err == nil && ip.Unmap().IsLoopback() {
		host = string(node)
	}
	return fmt.Sprintf("%s: %s port %d", host, d.Protocol, d.Port)
}

// unavailability is the text of the error in err that wraps mesh.ErrUnavailable
// itself, without that and without what others said around it; "" if there is
// no such text.
func unavailability(err error) string {
	var inner []error
	switch e := err.(type) { //nolint:errorlint // this is the walk
	case interface{ Unwrap() error }:
		inner = []error{e.Unwrap()}
	case interface{ Unwrap() []error }:
		inner = e.Unwrap()
	}
	for _, e := range inner {
		if e == mesh.ErrUnavailable { //nolint:errorlint // itself, and not what wraps it
			kind := mesh.ErrUnavailable.Error()
			return strings.TrimPrefix(strings.TrimSuffix(err.Error(), ": "+kind), kind+": ")
		}
	}
	for _, e := range inner {
		if errors.Is(e, mesh.ErrUnavailable) {
			return unavailability(e)
		}
	}
	return ""
}
