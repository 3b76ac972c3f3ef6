// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"log/slog"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// What an operator has to see is told at the default level, and a flood of
// strangers is not.
func TestLevel_TellsWhatAnOperatorHasToSee(t *testing.T) {
	s := serve(t, nil)
	failed := func(c connect.Code) *connect.Error { return connect.NewError(c, errors.New("it failed")) }
	for _, tt := range []struct {
		name, procedure string
		err             *connect.Error
		want            slog.Level
	}{
		{"a read", v1connect.MeshListNodesProcedure, nil, slog.LevelDebug},
		{"a change", v1connect.MembershipJoinProcedure, nil, slog.LevelInfo},
		{"a refused call", v1connect.MeshListNodesProcedure, failed(connect.CodePermissionDenied), slog.LevelInfo},
		{"a stranger", v1connect.MeshListNodesProcedure, failed(connect.CodeUnauthenticated), slog.LevelInfo},
		{"a change with a full disk", v1connect.MembershipJoinProcedure, failed(connect.CodeResourceExhausted), slog.LevelWarn},
		{"a change without a leader", v1connect.MembershipJoinProcedure, failed(connect.CodeUnavailable), slog.LevelWarn},
		{"a read without a leader", v1connect.MeshListNodesProcedure, failed(connect.CodeUnavailable), slog.LevelDebug},
		{"the end of a node's subscription", v1connect.MembershipSubscribePeersProcedure, failed(connect.CodeCanceled), slog.LevelInfo},
		{"a bug", v1connect.MeshListNodesProcedure, failed(connect.CodeInternal), slog.LevelError},
	} {
		if got := s.level(tt.procedure, tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	told := 0
	for range 10 * strangersBurst {
		if s.level(v1connect.MeshListNodesProcedure, failed(connect.CodeUnauthenticated)) == slog.LevelInfo {
			told++
		}
	}
	if told > strangersBurst+strangersRate {
		t.Errorf("%d records of strangers at once", told)
	}
}
