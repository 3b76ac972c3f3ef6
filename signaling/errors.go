// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
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

// dialFailure is what the client of an in-band channel is told about a failed
// dial: the destination as it named it, and why.
func dialFailure(d Destination, err error) *bridge.Error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &bridge.Error{Code: "deadline_exceeded", Message: d.String() + " did not answer in time"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &bridge.Error{Code: "unavailable", Message: d.String() + " refused the connection"}
	}
	return &bridge.Error{Code: "unavailable", Message: d.String() + " cannot be reached"}
}
