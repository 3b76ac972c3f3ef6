// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// ErrClosing says that the gateway shuts down. It is the cause of the contexts
// of calls that are ended for it.
var ErrClosing = errors.New("the gateway is shutting down; connect again, or to another gateway")

// errNotReady is the answer of a node that has not entered the mesh yet.
var errNotReady = fmt.Errorf("%w: this node has not entered the mesh yet; try again in a few seconds", mesh.ErrUnavailable)

// code is THE error table: it gives each error its RPC code, Internal when it
// is in no row. The codes are part of the wire behaviour.
func code(err error) connect.Code {
	switch {
	case errors.Is(err, mesh.ErrInvalid):
		return connect.CodeInvalidArgument
	case errors.Is(err, mesh.ErrNotFound):
		return connect.CodeNotFound
	case errors.Is(err, mesh.ErrExists):
		return connect.CodeAlreadyExists
	case errors.Is(err, mesh.ErrDenied):
		return connect.CodePermissionDenied
	case errors.Is(err, mesh.ErrUnauthenticated):
		return connect.CodeUnauthenticated
	case errors.Is(err, mesh.ErrExhausted):
		return connect.CodeResourceExhausted
	case errors.Is(err, mesh.ErrPrecondition):
		return connect.CodeFailedPrecondition
	case errors.Is(err, mesh.ErrConflict):
		return connect.CodeAborted
	case errors.Is(err, mesh.ErrUnsupported):
		return connect.CodeUnimplemented
	case errors.Is(err, mesh.ErrUnavailable), errors.Is(err, ErrClosing):
		return connect.CodeUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	case errors.Is(err, store.ErrNotFound):
		return connect.CodeNotFound
	case errors.Is(err, store.ErrConflict):
		return connect.CodeAborted
	case errors.Is(err, store.ErrCompacted):
		return connect.CodeOutOfRange
	case errors.Is(err, store.ErrInvalid):
		return connect.CodeInvalidArgument
	case errors.Is(err, store.ErrFull):
		return connect.CodeResourceExhausted
	case errors.Is(err, store.ErrNotLeader), errors.Is(err, store.ErrUncertain), errors.Is(err, store.ErrClosed):
		return connect.CodeUnavailable
	case errors.Is(err, io.EOF): // a client ended its stream where a message was due
		return connect.CodeInvalidArgument
	}
	return connect.CodeInternal
}

// Error turns what a handler returned into the error that the client gets; nil
// stays nil. An error that is in no row of the table becomes "internal error"
// with requestID, by which the operator finds the cause in the log.
func Error(ctx context.Context, err error, requestID string) *connect.Error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, ErrClosing) {
		return connect.NewError(connect.CodeUnavailable, ErrClosing)
	}
	c := code(err)
	if c != connect.CodeInternal {
		if errors.Is(err, io.EOF) && c == connect.CodeInvalidArgument && !errors.Is(err, mesh.ErrInvalid) {
			err = errors.New("the stream ended before the message that was due")
		}
		var fault *storeFault
		if errors.As(err, &fault) {
			return attach(connect.NewError(c, err), fault.detail)
		}
		if errors.Is(err, mesh.ErrRemoved) {
			return attach(connect.NewError(c, err), &meshgatev1.Removed{})
		}
		return connect.NewError(c, err)
	}
	var known *connect.Error
	switch {
	case errors.As(err, &known) && connect.IsWireError(known):
		return remoteError(known)
	case known != nil:
		return known
	}
	return connect.NewError(c, fmt.Errorf("internal error; the gateway's log has the cause under request_id %s", requestID))
}

// attach adds a detail to what the client gets.
func attach(to *connect.Error, detail proto.Message) *connect.Error {
	if d, err := connect.NewErrorDetail(detail); err == nil { // it is a known message, which has no way to fail
		to.AddDetail(d)
	}
	return to
}

// remoteError passes on the answer of another node. Codes that speak of that
// node's relation to this one, not to the client, become Unavailable.
func remoteError(e *connect.Error) *connect.Error {
	c := e.Code()
	switch c {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnknown, connect.CodeInternal, connect.CodeDataLoss:
		c = connect.CodeUnavailable
	}
	return connect.NewError(c, fmt.Errorf("the other node answered: %s", e.Message()))
}
