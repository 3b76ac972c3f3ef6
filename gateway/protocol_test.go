// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// client speaks one protocol. Each method makes one call as who.
type client struct {
	name   string
	unary  func(t *testing.T, who string) (*v1.MeshNode, error)
	stream func(t *testing.T, who string) (*meshgatev1.WatchMeshResponse, error) // first message
	bidi   func(t *testing.T, who string, candidates ...string) ([]*v1.DataChannelOffer, error)
}

func protocolClients(t *testing.T, s *served) []client {
	base := "http://" + s.public
	clients := []client{wsClient(s), grpcGoClient(t, s)}
	for name, opts := range map[string][]connect.ClientOption{
		"connect":      nil,
		"connect-json": {connect.WithProtoJSON()},
		"grpc":         {connect.WithGRPC()},
		"grpc-web":     {connect.WithGRPCWeb()},
	} {
		h2 := httpClient(t, true, "", nil)
		clients = append(clients, connectClient(name+" on HTTP/2", base, h2, true, opts))
		if name != "grpc" {
			clients = append(clients, connectClient(name+" on HTTP/1.1", base, httpClient(t, false, "", nil), false, opts))
		}
	}
	return clients
}

func connectClient(name, base string, c *http.Client, bidi bool, opts []connect.ClientOption) client {
	out := client{
		name: name,
		unary: func(t *testing.T, who string) (*v1.MeshNode, error) {
			res, err := v1connect.NewMeshClient(bearer(c, who), base, opts...).GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		},
		stream: func(t *testing.T, who string) (*meshgatev1.WatchMeshResponse, error) {
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			stream, err := meshgatev1connect.NewWatchClient(bearer(c, who), base, opts...).WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
			if err != nil {
				return nil, err
			}
			defer stream.Close()
			if !stream.Receive() {
				return nil, stream.Err()
			}
			return stream.Msg(), nil
		},
	}
	if bidi {
		out.bidi = func(t *testing.T, who string, candidates ...string) ([]*v1.DataChannelOffer, error) {
			call := v1connect.NewWebRTCClient(bearer(c, who), base, opts...).StartDataChannel(testContext(t))
			defer call.CloseResponse()
			return converse(candidates, call.Send, call.Receive, call.CloseRequest)
		}
	}
	return out
}

// converse sends each candidate, reads the answer before the next, and ends.
func converse(candidates []string, send func(*v1.StartDataChannelRequest) error, receive func() (*v1.DataChannelOffer, error), closeSend func() error) ([]*v1.DataChannelOffer, error) {
	var got []*v1.DataChannelOffer
	for _, c := range candidates {
		if err := send(&v1.StartDataChannelRequest{NodeId: "web-1", Candidate: c}); err != nil && !errors.Is(err, io.EOF) {
			return got, err
		}
		m, err := receive()
		if err != nil {
			return got, err
		}
		got = append(got, m)
	}
	if err := closeSend(); err != nil {
		return got, err
	}
	if _, err := receive(); !errors.Is(err, io.EOF) {
		return got, err
	}
	return got, nil
}

func wsClient(s *served) client {
	return client{
		name: "grpc-websockets",
		unary: func(t *testing.T, who string) (*v1.MeshNode, error) {
			c := dialWS(t, testContext(t), s.public, v1connect.MeshGetNodeProcedure, who, "x-test: 1")
			c.send(t, &v1.GetNodeRequest{Id: "web-1"})
			c.closeSend(t)
			m := &v1.MeshNode{}
			if err := c.receive(m); err != nil {
				return nil, err
			}
			if err := c.receive(&v1.MeshNode{}); err != io.EOF {
				t.Errorf("after the answer: %v", err)
			}
			if code := c.closed(); code != 1000 {
				t.Errorf("close code %d", code)
			}
			return m, nil
		},
		stream: func(t *testing.T, who string) (*meshgatev1.WatchMeshResponse, error) {
			c := dialWS(t, testContext(t), s.public, meshgatev1connect.WatchWatchMeshProcedure, who)
			c.send(t, &meshgatev1.WatchMeshRequest{})
			c.closeSend(t)
			m := &meshgatev1.WatchMeshResponse{}
			return m, c.receive(m)
		},
		bidi: func(t *testing.T, who string, candidates ...string) ([]*v1.DataChannelOffer, error) {
			c := dialWS(t, testContext(t), s.public, v1connect.WebRTCStartDataChannelProcedure, who)
			return converse(candidates,
				func(m *v1.StartDataChannelRequest) error { c.send(t, m); return nil },
				func() (*v1.DataChannelOffer, error) { m := &v1.DataChannelOffer{}; return m, c.receive(m) },
				func() error { c.closeSend(t); return nil })
		},
	}
}

// grpcGoClient is Google's client, which shares no code with the server.
func grpcGoClient(t *testing.T, s *served) client {
	conn, err := grpc.NewClient("passthrough:///"+s.public, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	outgoing := func(t *testing.T, who string) context.Context {
		if who == "" {
			return testContext(t)
		}
		return metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+tokenOf(who))
	}
	fromStatus := func(err error) error {
		if s, ok := status.FromError(err); ok && err != nil {
			return connect.NewError(connect.Code(s.Code()), errors.New(s.Message()))
		}
		return err
	}
	return client{
		name: "grpc-go",
		unary: func(t *testing.T, who string) (*v1.MeshNode, error) {
			m := &v1.MeshNode{}
			err := conn.Invoke(outgoing(t, who), v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "web-1"}, m)
			return m, fromStatus(err)
		},
		stream: func(t *testing.T, who string) (*meshgatev1.WatchMeshResponse, error) {
			ctx, cancel := context.WithCancel(outgoing(t, who))
			defer cancel()
			call, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, meshgatev1connect.WatchWatchMeshProcedure)
			if err == nil {
				err = errors.Join(call.SendMsg(&meshgatev1.WatchMeshRequest{}), call.CloseSend())
			}
			if err != nil {
				return nil, fromStatus(err)
			}
			m := &meshgatev1.WatchMeshResponse{}
			return m, fromStatus(call.RecvMsg(m))
		},
		bidi: func(t *testing.T, who string, candidates ...string) ([]*v1.DataChannelOffer, error) {
			call, err := conn.NewStream(outgoing(t, who), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, v1connect.WebRTCStartDataChannelProcedure)
			if err != nil {
				return nil, fromStatus(err)
			}
			return converse(candidates,
				func(m *v1.StartDataChannelRequest) error { return fromStatus(call.SendMsg(m)) },
				func() (*v1.DataChannelOffer, error) {
					m := &v1.DataChannelOffer{}
					return m, fromStatus(call.RecvMsg(m))
				},
				call.CloseSend)
		},
	}
}

func TestProtocols_AllKindsOfCalls(t *testing.T) {
	s := serve(t, nil)
	for _, c := range protocolClients(t, s) {
		t.Run(c.name, func(t *testing.T) {
			node, err := c.unary(t, "admin")
			if err != nil || node.GetId() != "web-1" {
				t.Errorf("unary: %v, %v", node, err)
			}
			if _, err := c.unary(t, ""); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("unary without credentials: %v", err)
			}
			if _, err := c.unary(t, "nobody"); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "VERB_GET on RESOURCE_EDGES") {
				t.Errorf("unary without a role: %v", err)
			}
			first, err := c.stream(t, "viewer")
			if err != nil || first.GetVersion() != 7 || first.GetGatewayId() != "gw-1" || first.GetMeshDomain() != "mesh.test" || len(first.GetNodes()) != 4 {
				t.Errorf("server stream: %v, %v", first, err)
			}
			if _, err := c.stream(t, "opener"); connect.CodeOf(err) != connect.CodePermissionDenied {
				t.Errorf("server stream without a role: %v", err)
			}
			if c.bidi == nil {
				return
			}
			offers, err := c.bidi(t, "opener", "a", "b", "c")
			if err != nil || len(offers) != 3 || offers[0].GetOffer() != "offer for opener" || offers[2].GetCandidate() != "c" {
				t.Errorf("bidi: %v, %v", offers, err)
			}
			if _, err := c.bidi(t, "viewer", "a"); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), `"web-1"`) {
				t.Errorf("bidi without a role: %v", err)
			}
			if _, err := c.bidi(t, ""); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("bidi without credentials: %v", err)
			}
			if _, err := c.bidi(t, "opener", "fault"); connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), "secret") {
				t.Errorf("bidi with a fault: %v", err)
			}
		})
	}
}

// The JSON form of Connect is what people try with curl.
func TestProtocols_ConnectJSONByHand(t *testing.T) {
	s := serve(t, nil)
	c := bearer(httpClient(t, false, "", nil), "admin")
	a := ask(t, c, http.MethodPost, "http://"+s.public+v1connect.MeshGetNodeProcedure, `{"id":"web-1"}`, "Content-Type", "application/json")
	if a.StatusCode != http.StatusOK || !strings.Contains(a.text, `"id":"web-1"`) {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	if len(a.Header.Get("X-Request-Id")) < 20 {
		t.Error("no request id")
	}
}

func TestProtocols_BidiOnHTTP1IsRefused(t *testing.T) {
	s := serve(t, nil)
	c := connectClient("", "http://"+s.public, httpClient(t, false, "", nil), true, nil)
	_, err := c.bidi(t, "admin", "a")
	if err == nil {
		t.Error("a bidirectional call worked on HTTP/1.1")
	}
}
