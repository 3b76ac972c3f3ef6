// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// other is a node that answers.
type other struct {
	v1connect.UnimplementedNodeHandler
	gone chan struct{} // closed when a stream has ended here
}

func (o *other) GetStatus(_ context.Context, req *connect.Request[v1.GetStatusRequest]) (*connect.Response[v1.Status], error) {
	return connect.NewResponse(&v1.Status{Id: req.Msg.GetId(), Version: req.Header().Get("Authorization")}), nil
}

func (o *other) ReceiveSignalChannel(_ context.Context, stream *connect.BidiStream[v1.WebRTCSignal, v1.WebRTCSignal]) error {
	defer close(o.gone)
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

func handler(o *other) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewNodeHandler(o))
	return mux
}

// serveNode serves o on a loopback port, in clear or with TLS.
func serveNode(t *testing.T, o *other, withTLS bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler(o))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.Protocols.SetHTTP2(true)
	s.EnableHTTP2 = true
	if withTLS {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func testPeers(t *testing.T) *Peers {
	t.Helper()
	p, err := New(Config{Dial: (&net.Dialer{}).DialContext})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestNew_NeedsDial(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no error")
	}
}

func TestPeers_StreamEndsWithItsContextOnBothEnds(t *testing.T) {
	o := &other{gone: make(chan struct{})}
	s := serveNode(t, o, false)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	call := testPeers(t).Node(netip.MustParseAddrPort(s.Listener.Addr().String())).ReceiveSignalChannel(ctx)
	stream := NewStream[v1.WebRTCSignal, v1.WebRTCSignal](call)
	if err := stream.Send(&v1.WebRTCSignal{Candidate: "a"}); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Receive(); err != nil || m.GetCandidate() != "a" {
		t.Fatal(m, err)
	}
	cancel()
	select {
	case <-o.gone: // though nobody receives here
	case <-time.After(patience):
		t.Error("the other end did not notice")
	}
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("after the end: %v", err)
	}
}

func TestPeers_HalfCloseEndsWithPlainEOF(t *testing.T) {
	o := &other{gone: make(chan struct{})}
	s := serveNode(t, o, false)
	call := testPeers(t).Node(netip.MustParseAddrPort(s.Listener.Addr().String())).ReceiveSignalChannel(t.Context())
	stream := NewStream[v1.WebRTCSignal, v1.WebRTCSignal](call)
	if err := errors.Join(stream.Send(&v1.WebRTCSignal{}), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != io.EOF {
		t.Errorf("got %v", err)
	}
}

// A node that accepts the connection and then says nothing must not hold a
// caller that set no deadline.
func TestPeers_UnaryCallsHaveADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far, near := net.Pipe()
		p, err := New(Config{Dial: func(context.Context, string, string) (net.Conn, error) { return near, nil }})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, far)
		}()
		started := time.Now()
		_, err = p.Node(netip.MustParseAddrPort("10.0.0.1:8443")).GetStatus(context.Background(), connect.NewRequest(&v1.GetStatusRequest{}))
		if connect.CodeOf(err) != connect.CodeDeadlineExceeded && connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("got %v", err)
		}
		if took := time.Since(started); took > unaryTimeout+time.Second {
			t.Errorf("took %s", took)
		}
		p.Close()
		_ = near.Close()
		<-done
	})
}

func TestPublic_TokenAndPin(t *testing.T) {
	s := serveNode(t, &other{}, true)
	pin := PinOf(s.Certificate())
	for _, tt := range []struct {
		name string
		opts TLSOptions
		want string // part of the error
	}{
		{"pinned", TLSOptions{Pin: pin}, ""},
		{"other pin", TLSOptions{Pin: sha256.Sum256([]byte("x"))}, "pin"},
		{"unknown authority", TLSOptions{}, "certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := NewPublic(s.URL, "secret-token", tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			res, err := p.Node().GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{}))
			switch {
			case tt.want == "" && (err != nil || res.Msg.GetVersion() != "Bearer secret-token"):
				t.Errorf("%v, %v", res, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPublic_Addresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://gate.example.org":       true,
		"https://gate.example.org:8443/": true,
		"http://localhost:8080":          true,
		"http://127.0.0.1:8080":          true,
		"http://[::1]:8080":              true,
		"http://gate.example.org":        false,
		"http://127.0.0.1.example.org":   false,
		"http://10.0.0.1":                false,
		"gate.example.org":               false,
		"ftp://gate.example.org":         false,
		"https://user:pw@gate":           false,
		"https://gate?token=x":           false,
		"":                               false,
	} {
		p, err := NewPublic(address, "t", TLSOptions{})
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err != nil && !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%q: %v is no ErrInvalid", address, err)
		}
		if p != nil {
			p.Close()
		}
	}
}

// A redirect must not carry the token to another host.
func TestPublic_RedirectIsAnError(t *testing.T) {
	var asked bool
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer target.Close()
	from := httptest.NewUnstartedServer(http.RedirectHandler(target.URL, http.StatusTemporaryRedirect))
	from.Config.Protocols = new(http.Protocols)
	from.Config.Protocols.SetUnencryptedHTTP2(true)
	from.Start()
	defer from.Close()
	p, err := NewPublic(from.URL, "t", TLSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = p.Node().GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{}))
	if err == nil || asked {
		t.Errorf("followed: %v, %v", asked, err)
	}
}

// refusing is a node that refuses signalling.
type refusing struct {
	v1connect.UnimplementedNodeHandler
}

func (refusing) ReceiveSignalChannel(context.Context, *connect.BidiStream[v1.WebRTCSignal, v1.WebRTCSignal]) error {
	return connect.NewError(connect.CodePermissionDenied, errors.New("no network ACL lets eve in"))
}

// What another node refuses its client is a refusal here, too, and not a node
// that cannot be reached.
func TestStream_ReceivePassesADenialOn(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewNodeHandler(refusing{}))
	s := httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	call := NewStream[v1.WebRTCSignal, v1.WebRTCSignal](testPeers(t).Node(at).ReceiveSignalChannel(t.Context()))
	// The node may have refused before this arrives, or after.
	if err := call.Send(&v1.WebRTCSignal{}); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	_, err := call.Receive()
	if !errors.Is(err, mesh.ErrDenied) || err.Error() != "no network ACL lets eve in" {
		t.Errorf("got %v, want a denial in the other node's words", err)
	}
}
