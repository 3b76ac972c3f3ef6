// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/store"
)

// TestJudgeApply_AgainOnlyIfNotTaken has a change end without a word of the state:
// it may be made again where nothing was sent, and where a gateway itself, and
// nobody on the way or on this side, says that it did not take it.
func TestJudgeApply_AgainOnlyIfNotTaken(t *testing.T) {
	failed := errors.New("failed")
	on := func(op string) error { return &net.OpError{Op: op, Net: "tcp", Err: syscall.ECONNRESET} }
	local := func(code connect.Code) error { return connect.NewError(code, failed) }
	wire := func(code connect.Code) error { return connect.NewWireError(code, failed) }
	type verdict int
	const (
		again verdict = iota
		refused
		invalid
		uncertain
	)
	type test struct {
		name string
		err  error
		want verdict
	}
	tests := []test{
		{"no connection", on("dial"), again},
		{"no connection, in a code", connect.NewError(connect.CodeUnavailable, on("dial")), again},
		{"no address", &net.DNSError{Name: "x"}, again},
		{"somebody else", &tls.CertificateVerificationError{Err: failed}, again},
		{"reset while it was read", on("read"), uncertain},
		{"reset while it was written", connect.NewError(connect.CodeUnavailable, on("write")), uncertain},
		{"ended before the answer", io.ErrUnexpectedEOF, uncertain},
		{"no answer in time", context.DeadlineExceeded, uncertain},
		{"too many changes, says the gateway", wire(connect.CodeResourceExhausted), again},
		{"an answer that is too large", local(connect.CodeResourceExhausted), uncertain},
		{"no such change, says the gateway", wire(connect.CodeInvalidArgument), invalid},
		{"an answer that makes no sense", local(connect.CodeInvalidArgument), uncertain},
	}
	for _, code := range []connect.Code{connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented} {
		tests = append(tests,
			test{fmt.Sprintf("%v, says the gateway", code), wire(code), refused},
			test{fmt.Sprintf("%v, says something on the way", code), local(code), uncertain})
	}
	for _, code := range []connect.Code{
		connect.CodeCanceled, connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeAborted, connect.CodeInternal,
		connect.CodeUnavailable, connect.CodeDataLoss,
	} {
		tests = append(tests, test{fmt.Sprintf("%v, says the gateway", code), wire(code), uncertain})
	}
	for _, tt := range tests {
		err := judgeApply(tt.err)
		var final finalError
		var refusal refusedError
		got := again
		switch {
		case errors.As(err, &refusal):
			got = refused
		case errors.As(err, &final) && errors.Is(err, store.ErrInvalid):
			got = invalid
		case errors.As(err, &final) && errors.Is(err, store.ErrUncertain):
			got = uncertain
		case errors.As(err, &final):
			t.Errorf("%s: final with %v", tt.name, err)
		}
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %d with %v, want %d", tt.name, got, err, tt.want)
		}
	}
}
