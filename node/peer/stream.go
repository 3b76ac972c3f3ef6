// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"fmt"
	"io"
	"net"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
)

// Stream is the client's side of a bidirectional call: it receives In and
// sends Out. Send and Receive may run beside each other, but each in one
// goroutine at a time. The call ends with its context.
type Stream[In, Out any] struct {
	call *connect.BidiStreamForClient[Out, In]
}

// NewStream wraps a call of a generated client.
func NewStream[In, Out any](call *connect.BidiStreamForClient[Out, In]) *Stream[In, Out] {
	return &Stream[In, Out]{call: call}
}

// Receive returns the next message; io.EOF, unwrapped, when the server ended
// the call without an error. An error that wraps mesh.ErrDenied says that the
// server refuses what the call is for, and one that wraps mesh.ErrUnavailable that
// the connection to it was lost.
func (s *Stream[In, Out]) Receive() (*In, error) {
	m, err := s.call.Receive()
	if err != nil && errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if wire, ok := errors.AsType[*connect.Error](err); ok && connect.IsWireError(wire) && wire.Code() == connect.CodePermissionDenied {
		return nil, verdict{wire}
	}
	return m, lost(err)
}

// lost gives an error with which a call broke off the kind by which it is known
// that the other node is not there any more. What that node said itself, and the
// end of the call's context, are other errors.
func lost(err error) error {
	own, ok := errors.AsType[*connect.Error](err)
	if !ok || connect.IsWireError(own) {
		return err
	}
	if _, ok := errors.AsType[*net.OpError](err); ok && own.Code() == connect.CodeCanceled {
		// A connection that is reset may come as this, too, though nobody canceled.
		return fmt.Errorf("%w: the connection to the other node was lost: %w", mesh.ErrUnavailable, err)
	}
	switch own.Code() {
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeUnavailable, connect.CodeDataLoss:
		return fmt.Errorf("%w: the connection to the other node was lost: %w", mesh.ErrUnavailable, err)
	}
	return err
}

// verdict is the refusal of what a stream is for. It is about whoever asked for
// it, and not about this node's relation to the one that answered, so that it
// may be passed on: errors.Is finds mesh.ErrDenied.
type verdict struct{ wire *connect.Error }

// Error is what the other node said.
func (v verdict) Error() string { return v.wire.Message() }

// Is implements errors.Is.
func (v verdict) Is(target error) bool { return target == mesh.ErrDenied }

// Unwrap returns the error as it came.
func (v verdict) Unwrap() error { return v.wire }

// Send sends a message. After the server ended the call it returns io.EOF,
// unwrapped, and Receive says why: a server may end a call before it has read
// what was sent.
func (s *Stream[In, Out]) Send(m *Out) error {
	err := s.call.Send(m)
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return lost(err)
}

// CloseSend says that nothing more will be sent; Receive goes on.
func (s *Stream[In, Out]) CloseSend() error { return s.call.CloseRequest() }
