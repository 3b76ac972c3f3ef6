// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// A token that leaves the tokens file takes along, within seconds, what it
// opened: watches, peer connections with the connections inside, and the use of
// TURN.
func TestRevokedToken_EndsWhatItOpened(t *testing.T) {
	const stolen, kept = "stolen-0123456789abcdef0123", "kept-0123456789abcdef012345"
	service := echoService(t)
	line := func(token string) string { return fmt.Sprintf("%x admin\n", sha256.Sum256([]byte(token))) }
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte(line(stolen)+line(kept)), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := start(t, "up", "--dev", "--listen", "127.0.0.1:0", "--auth.tokens-file", tokens, "--expose", "tcp:7="+service)
	forward := func(token string) *process {
		return startEnv(t, []string{"MESHGATE_SERVER=" + gate.ready.URL, "MESHGATE_TOKEN=" + token}, "port-forward", "gateway", "0:localhost:7")
	}
	thief, owner := forward(stolen), forward(kept)
	open := dialEcho(t, thief)
	open.says(t, "before")

	conn, ctx := grpcConn(t, gate)
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", "Bearer "+stolen))
	watch, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/meshgate.v1.Watch/WatchMesh")
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.SendMsg(&meshgatev1.WatchMeshRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := watch.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := watch.RecvMsg(&meshgatev1.WatchMeshResponse{}); err != nil {
		t.Fatal(err)
	}

	revoked := time.Now()
	if err := os.WriteFile(tokens, []byte(line(kept)), 0o600); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		err = watch.RecvMsg(&meshgatev1.WatchMeshResponse{})
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the watch ended with %v", err)
	}
	if rest, err := io.ReadAll(open.r); len(rest) != 0 {
		t.Errorf("the open connection said %q, %v", rest, err)
	}
	if took := time.Since(revoked); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	again, err := net.Dial("tcp", strings.TrimPrefix(thief.ready.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_ = again.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(again, "again\n") // may find it closed
	if answer, _ := io.ReadAll(again); len(answer) != 0 {
		t.Errorf("a new connection got %q", answer)
	}
	dialEcho(t, owner).says(t, "the other token is good")
}

// A credential for TURN ends with the token in whose call it was given.
func TestRevokedToken_EndsTURN(t *testing.T) {
	const stolen = "stolen-0123456789abcdef0123"
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, fmt.Appendf(nil, "%x admin\n", sha256.Sum256([]byte(stolen))), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := start(t, "up", "--dev", "--listen", "127.0.0.1:0", "--id", "gateway", "--auth.tokens-file", tokens)
	gate.ready.Token = stolen
	s := minted(t, gate)
	relays := func() bool {
		out, err := uclient(t, gate, s.GetUsername(), s.GetCredential(), "127.0.0.1:3480", "-y")
		return err == nil && strings.Contains(out, "tot_recv_msgs=6")
	}
	if !relays() {
		t.Fatal("the credential is not good to begin with")
	}
	if err := os.WriteFile(tokens, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() (bool, string) { return !relays(), "the relay goes on" })
}

// echoService sends lines back.
func echoService(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// echoConn is a connection through a port-forward.
type echoConn struct {
	net.Conn
	r *bufio.Reader
}

func dialEcho(t testing.TB, forward *process) *echoConn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(forward.ready.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &echoConn{Conn: c, r: bufio.NewReader(c)}
}

func (c *echoConn) says(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.r.ReadString('\n'); err != nil || got != text+"\n" {
		t.Fatalf("%q came back: %v", got, err)
	}
}
