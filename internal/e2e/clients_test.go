// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// get fetches a page and returns its body.
func get(t testing.TB, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %v", url, resp.Status, err)
	}
	return string(body)
}

// grpcConn is a stock grpc-go client of a gateway without TLS.
func grpcConn(t testing.TB, p *process) (*grpc.ClientConn, context.Context) {
	t.Helper()
	c, err := grpc.NewClient(strings.TrimPrefix(p.ready.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return c, metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+p.ready.Token)
}

func TestGRPCGo_StatusHealthAndOffer(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	conn, ctx := grpcConn(t, demo)

	status := &v1.Status{}
	if err := conn.Invoke(ctx, "/v1.Node/GetStatus", &v1.GetStatusRequest{}, status); err != nil {
		t.Fatal(err)
	}
	if status.GetClusterStatus() != v1.ClusterStatus_CLUSTER_LEADER || status.GetInterfaceMetrics().GetNumPeers() != 2 {
		t.Errorf("status: %v", status)
	}
	health, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", health, err)
	}
	for _, node := range []string{"gateway", "phone", "firewalled"} {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/v1.WebRTC/StartDataChannel")
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(&v1.StartDataChannelRequest{NodeId: node, InBand: true}); err != nil {
			t.Fatal(err)
		}
		offer := &v1.DataChannelOffer{}
		if err := stream.RecvMsg(offer); err != nil {
			t.Fatalf("offer of %s: %v", node, err)
		}
		if !strings.Contains(offer.GetOffer(), `"offer"`) || len(offer.GetIceServers()) == 0 {
			t.Errorf("offer of %s: %v", node, offer)
		}
	}
}

func TestCurl_ConnectJSON(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	curl := func(token, body string) map[string]any {
		t.Helper()
		out, err := exec.Command("curl", "-sS", "--max-time", "30", "-H", "Content-Type: application/json",
			"-H", "Authorization: Bearer "+token, "-d", body, demo.ready.URL+"/v1.Node/GetStatus").Output()
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		if err := json.Unmarshal(out, &answer); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return answer
	}
	if got := curl(demo.ready.Token, "{}"); got["id"] != "gateway" {
		t.Errorf("own status: %v", got)
	}
	if got := curl(demo.ready.Token, `{"id":"firewalled"}`); got["id"] != "firewalled" || got["clusterStatus"] != "CLUSTER_NODE" {
		t.Errorf("status of the firewalled node: %v", got)
	}
	if got := curl(demo.ready.Token, `{"id":"phone"}`); got["code"] != "failed_precondition" {
		t.Errorf("status of a stock peer: %v", got)
	}
	if got := curl("wrong-wrong-wrong-wrong-wrong", "{}"); got["code"] != "unauthenticated" {
		t.Errorf("a wrong token: %v", got)
	}
}

func TestGRPCWeb_OfficialEncoding(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	msg, err := proto.Marshal(&v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg)))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, demo.ready.URL+"/v1.Node/GetStatus", bytes.NewReader(append(frame, msg...)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc-web+proto")
	req.Header.Set("X-Grpc-Web", "1")
	req.Header.Set("Authorization", "Bearer "+demo.ready.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || len(body) < 5 || body[0] != 0 {
		t.Fatalf("answer: %s %v %x", resp.Status, err, body)
	}
	size := binary.BigEndian.Uint32(body[1:5])
	status := &v1.Status{}
	if err := proto.Unmarshal(body[5:5+size], status); err != nil || status.GetId() != "gateway" {
		t.Errorf("status: %v %v", status, err)
	}
	trailer := body[5+size:]
	if len(trailer) < 5 || trailer[0] != 0x80 || !strings.Contains(strings.ToLower(string(trailer[5:])), "grpc-status: 0") {
		t.Errorf("trailer: %q", trailer)
	}
}

func TestTools_StatusPeerAndPortForward(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	out := demo.tool("status")
	for _, want := range []string{"gateway", "phone", "firewalled", "online"} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	config := demo.tool("peer", "create", "tablet")
	for _, want := range []string{"[Interface]", "PrivateKey = ", "Address = 172.16.0.4/32", "[Peer]", "AllowedIPs = 172.16.0.0/12"} {
		if !strings.Contains(config, want) {
			t.Errorf("configuration lacks %q:\n%s", want, config)
		}
	}
	if _, err := demo.try("peer", "create", "tablet"); err == nil || !strings.Contains(err.Error(), "tablet") {
		t.Errorf("the same name twice: %v", err)
	}
	if out := demo.tool("peer", "create", "watch", "--qr"); !strings.Contains(out, "█") {
		t.Errorf("no QR code:\n%s", out)
	}
	demo.tool("peer", "delete", "tablet")
	if out := demo.tool("status"); strings.Contains(out, "tablet") {
		t.Errorf("a deleted peer is still there:\n%s", out)
	}
	for _, node := range []string{"phone", "firewalled"} {
		forward := startEnv(t, []string{"MESHGATE_SERVER=" + demo.ready.URL, "MESHGATE_TOKEN=" + demo.ready.Token},
			"port-forward", node, "0:localhost:80")
		client := &http.Client{Timeout: 30 * time.Second}
		resp, err := client.Get(forward.ready.URL)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), "Hello from "+node) {
			t.Errorf("page of %s: %v %s", node, err, body)
		}
		// It has a relay in any case, and gives it back before it ends.
		eventually(t, patience, func() (bool, string) {
			out := demo.tool("turn", "list", "--user", "admin")
			return strings.Contains(out, " UDP "), "no relay over UDP of the port-forward:\n" + out
		})
		forward.interrupt()
		if out := demo.tool("turn", "list", "--user", "admin"); strings.Contains(out, "admin") {
			t.Errorf("what the port-forward to %s has left behind:\n%s", node, out)
		}
	}
}
