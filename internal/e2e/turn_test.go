// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// minted asks the gateway for an offer and returns the TURN server in it.
func minted(t testing.TB, p *process) *v1.ICEServer {
	t.Helper()
	conn, ctx := grpcConn(t, p)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/v1.WebRTC/StartDataChannel")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&v1.StartDataChannelRequest{NodeId: "gateway", InBand: true}); err != nil {
		t.Fatal(err)
	}
	offer := &v1.DataChannelOffer{}
	if err := stream.RecvMsg(offer); err != nil {
		t.Fatal(err)
	}
	for _, s := range offer.GetIceServers() {
		if s.GetUsername() != "" {
			return s
		}
	}
	t.Fatalf("the offer names no TURN server: %v", offer.GetIceServers())
	return nil
}

// uclient runs Debian's turnutils_uclient against the gateway's TURN, towards
// peer, and returns what it printed.
func uclient(t testing.TB, p *process, user, password, peer string, more ...string) (string, error) {
	t.Helper()
	host, port, err := net.SplitHostPort(p.ready.TURN)
	if err != nil {
		t.Fatal(err)
	}
	peerHost, peerPort, err := net.SplitHostPort(peer)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// -s: with channels the client draws numbers of which RFC 8656 allows a quarter.
	args := append([]string{"-c", "-s", "-m", "1", "-n", "3", "-u", user, "-w", password, "-p", port, "-e", peerHost, "-r", peerPort}, more...)
	out, err := exec.CommandContext(ctx, "turnutils_uclient", append(args, host)...).CombinedOutput()
	return string(out), err
}

func TestTURN_CoturnClientRelaysAndIsRefused(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	s := minted(t, demo)

	// -y relays between two allocations of the client itself: through our own
	// relay ports, which are the only special addresses that are open.
	for _, transport := range [][]string{nil, {"-t"}} {
		out, err := uclient(t, demo, s.GetUsername(), s.GetCredential(), "127.0.0.1:3480", append(transport, "-y")...)
		if err != nil || !strings.Contains(out, "start_mclient: tot_send_msgs=6, tot_recv_msgs=6") {
			t.Errorf("relay %v: %v\n%s", transport, err, out)
		}
	}
	expired := "1000000000" + s.GetUsername()[strings.Index(s.GetUsername(), ":"):]
	for name, c := range map[string]struct{ user, password string }{
		"expired": {expired, s.GetCredential()},
		"wrong":   {s.GetUsername(), "wrong"},
		"empty":   {s.GetUsername(), ""},
	} {
		if out, err := uclient(t, demo, c.user, c.password, "127.0.0.1:3480", "-y"); err == nil && !strings.Contains(out, "error") {
			t.Errorf("%s credential was taken:\n%s", name, out)
		}
	}
	_, metrics, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(demo.ready.Metrics, "http://"), "/metrics"))
	_, api, _ := net.SplitHostPort(strings.TrimPrefix(demo.ready.URL, "http://"))
	for _, peer := range []string{
		"127.0.0.1:80", "169.254.169.254:80", "[::ffff:127.0.0.1]:80", "127.0.0.1:" + metrics, "127.0.0.1:" + api,
		"8.8.8.8:53", "11.0.0.1:4000",
	} {
		out, err := uclient(t, demo, s.GetUsername(), s.GetCredential(), peer)
		if err == nil && !strings.Contains(out, "403") && !strings.Contains(strings.ToLower(out), "forbidden") && !strings.Contains(out, "error") {
			t.Errorf("relay towards %s was not refused:\n%s", peer, out)
		}
	}
}

// Two ends that meet by way of TURN alone need no address to be open but those
// that the gateway knows by itself.
func TestTURN_RelayOnlyReachesEveryNode(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	gate, err := peer.NewPublic(demo.ready.URL, demo.ready.Token, peer.TLSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, node := range []string{"phone", "firewalled"} {
		call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](gate.WebRTC().StartDataChannel(ctx))
		c, err := client.Dial(ctx, call, client.Options{Node: node, RelayOnly: true, RTC: rtc.Config{Loopback: true}})
		if err != nil {
			t.Fatalf("%s: %v", node, err)
		}
		if path := c.Path(); path.Kind != "relayed" || !strings.HasPrefix(path.Local, "relay ") {
			t.Errorf("%s: path %+v", node, path)
		}
		conn, err := c.DialContext(ctx, "tcp", "localhost:7")
		if err != nil {
			t.Fatalf("%s: %v", node, err)
		}
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q came back: %v", node, got, err)
		}
		_, _ = conn.Close(), c.Close()
	}
}
