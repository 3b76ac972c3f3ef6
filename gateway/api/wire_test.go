// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"
)

// wireError is an error as a client gets it from another node.
func wireError(t testing.TB, code connect.Code) error {
	t.Helper()
	s := httptest.NewServer(connect.NewUnaryHandler("/x/Y", func(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[emptypb.Empty], error) {
		return nil, connect.NewError(code, errors.New("from afar"))
	}))
	defer s.Close()
	_, err := connect.NewClient[emptypb.Empty, emptypb.Empty](s.Client(), s.URL+"/x/Y").CallUnary(t.Context(), connect.NewRequest(&emptypb.Empty{}))
	if !connect.IsWireError(err) {
		t.Fatal(err)
	}
	return err
}
