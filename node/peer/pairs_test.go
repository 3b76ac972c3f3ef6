// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"connectrpc.com/connect"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// pairsEcho answers what comes with as much.
type pairsEcho struct {
	v1connect.UnimplementedWebRTCHandler
	tokens chan string
}

func (e pairsEcho) Follow(_ context.Context, stream *connect.BidiStream[meshgatev1.FollowPairsRequest, meshgatev1.FollowPairsResponse]) error {
	e.tokens <- stream.RequestHeader().Get("Authorization")
	for {
		m, err := stream.Receive()
		if err != nil {
			return nil // the client has half-closed
		}
		answer := &meshgatev1.FollowPairsResponse{}
		for _, text := range m.GetAdd() {
			answer.Pairs = append(answer.Pairs, &meshgatev1.Pair{Wanted: text})
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func (e pairsEcho) StartSignalChannel(_ context.Context, stream *connect.BidiStream[v1.WebRTCSignal, v1.WebRTCSignal]) error {
	for {
		m, err := stream.Receive()
		if err != nil {
			return nil // the client has half-closed
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// Over the mesh and on the public address, a node gets to the same services.
func TestPairs_CallsOfBothClients(t *testing.T) {
	echo := pairsEcho{tokens: make(chan string, 2)}
	mux := http.NewServeMux()
	mux.Handle(meshgatev1connect.NewPairsHandler(echo))
	mux.Handle(v1connect.NewWebRTCHandler(echo))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	public, err := NewPublic(server.URL, "token-of-the-node", TLSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer public.Close()
	inside, err := New(Config{Dial: (&net.Dialer{}).DialContext})
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	for name, c := range map[string]struct {
		pairs *Pairs
		token string
	}{
		"public": {public.Pairs(), "Bearer token-of-the-node"},
		"mesh":   {inside.Pairs(netip.MustParseAddrPort(server.Listener.Addr().String())), ""},
	} {
		follow := c.pairs.FollowPairs(t.Context())
		if err := follow.Send(&meshgatev1.FollowPairsRequest{Add: []string{"desk"}}); err != nil {
			t.Fatal(err)
		}
		if m, err := follow.Receive(); err != nil || len(m.GetPairs()) != 1 || m.GetPairs()[0].GetWanted() != "desk" {
			t.Errorf("%s: followed %v, %v", name, m, err)
		}
		if token := <-echo.tokens; token != c.token {
			t.Errorf("%s: token %q", name, token)
		}
		signals := c.pairs.SignalPaths(t.Context())
		if err := signals.Send(&v1.WebRTCSignal{Path: &v1.PathSignal{Session: 7}}); err != nil {
			t.Fatal(err)
		}
		if m, err := signals.Receive(); err != nil || m.GetPath().GetSession() != 7 {
			t.Errorf("%s: signalled %v, %v", name, m, err)
		}
		for _, end := range []func() error{follow.CloseSend, signals.CloseSend} {
			if err := end(); err != nil {
				t.Error(err)
			}
		}
		if _, err := follow.Receive(); err != io.EOF {
			t.Errorf("%s: after the half-close: %v", name, err)
		}
		if _, err := signals.Receive(); err != io.EOF {
			t.Errorf("%s: after the half-close: %v", name, err)
		}
	}
}
