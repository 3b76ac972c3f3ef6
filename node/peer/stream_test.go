// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A node that is lost in the middle of a call cannot be reached: that is no
// fault of whoever carries the call.
func TestStream_ALostConnectionIsUnavailable(t *testing.T) {
	o := &other{gone: make(chan struct{})}
	s := serveNode(t, o, false)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	call := NewStream[v1.WebRTCSignal, v1.WebRTCSignal](testPeers(t).Node(at).ReceiveSignalChannel(t.Context()))
	if err := call.Send(&v1.WebRTCSignal{Candidate: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := call.Receive(); err != nil {
		t.Fatal(err)
	}
	s.CloseClientConnections()
	if _, err := call.Receive(); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("received %v, want ErrUnavailable", err)
	}
	if err := call.Send(&v1.WebRTCSignal{}); err != io.EOF && !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("sent: %v", err)
	}
}

// Only what broke a call off is a loss.
func TestLost(t *testing.T) {
	broken := io.ErrUnexpectedEOF
	for name, tt := range map[string]struct {
		err  error
		lost bool
	}{
		"none":               {nil, false},
		"another error":      {broken, false},
		"half a message":     {connect.NewError(connect.CodeInternal, broken), true},
		"the connection":     {connect.NewError(connect.CodeUnknown, broken), true},
		"no connection":      {connect.NewError(connect.CodeUnavailable, broken), true},
		"no answer in time":  {connect.NewError(connect.CodeDeadlineExceeded, broken), false},
		"a reset, canceled":  {connect.NewError(connect.CodeCanceled, &net.OpError{Op: "read", Err: broken}), true},
		"the end of the ctx": {connect.NewError(connect.CodeCanceled, broken), false},
		"what it said":       {connect.NewWireError(connect.CodeInternal, broken), false},
	} {
		got := lost(tt.err)
		if !errors.Is(got, tt.err) || errors.Is(got, mesh.ErrUnavailable) != tt.lost {
			t.Errorf("%s: %v", name, got)
		}
	}
}
