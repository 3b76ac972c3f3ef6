// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/internal/child"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

const (
	// admin is who may do everything in a mesh of the benchmark.
	admin = "admin"
	// maxMessage bounds an answer, in bytes; lists of ten thousand nodes are large.
	maxMessage = 64 << 20
)

// tokenOf is the token of a node or user. It is no secret: gateways of the
// benchmark listen on loopback only, and end with it.
func tokenOf(id string) string { return "token-of-the-benchmark-for-" + id }

// writeTokens writes a token file for a gateway.
func writeTokens(path string, ids ...string) error {
	var text strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&text, "%x %s\n", sha256.Sum256([]byte(tokenOf(id))), id)
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}

// startGateway starts a gateway with its state on disk, as operators do, on an
// address of loopback. Its TLS is its own, its WireGuard needs no root.
func startGateway(ctx context.Context, b binaries, id, host, tokens string, extra ...string) (p *child.Process, address string, err error) {
	port, err := freePort(host)
	if err != nil {
		return nil, "", err
	}
	wireguard, err := freeUDPPort()
	if err != nil {
		return nil, "", err
	}
	address = net.JoinHostPort(host, port)
	args := append([]string{
		"up", "--output", "json", "--id", id, "--data-dir", filepath.Join(b.dir, id), "--public-address", host,
		"--listen", address, "--metrics.listen", "", "--log.level", "warn",
		"--wireguard.mode", "netstack", "--wireguard.listen-port", wireguard,
		"--ice.listen", host + ":0", "--turn.listen", "", "--mesh.admin", admin,
		"--mesh.default-network-policy", "accept", "--auth.tokens-file", tokens,
	}, extra...)
	var ready struct{ Event string }
	p, err = child.Start(ctx, exec.CommandContext(ctx, b.meshgate, args...), &ready)
	return p, address, err
}

// freePort is a TCP port that nobody listens on now.
func freePort(host string) (string, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "", err
	}
	return port, l.Close()
}

// freeUDPPort is a UDP port that nobody uses now.
func freeUDPPort() (string, error) {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return "", err
	}
	return strconv.Itoa(c.LocalAddr().(*net.UDPAddr).Port), c.Close()
}

// clients are those of one server. All who use them share its connections,
// each of which carries as many calls as the server allows.
type clients struct {
	transport  *http.Transport
	membership v1connect.MembershipClient
	enrolment  meshgatev1connect.EnrolmentClient
	mesh       v1connect.MeshClient
	admin      v1connect.AdminClient
}

// newClients makes gRPC clients of a server at a URL. Who it is, is known: it
// was started by this program, on loopback.
func newClients(base string) *clients {
	t := &http.Transport{
		Protocols:       new(http.Protocols),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		HTTP2:           &http.HTTP2Config{MaxReceiveBufferPerConnection: maxWindow, MaxReceiveBufferPerStream: maxWindow},
	}
	t.Protocols.SetHTTP2(true)
	t.Protocols.SetUnencryptedHTTP2(true)
	h := &http.Client{Transport: t}
	options := []connect.ClientOption{connect.WithGRPC(), connect.WithReadMaxBytes(maxMessage)}
	return &clients{
		transport:  t,
		membership: v1connect.NewMembershipClient(h, base, options...),
		enrolment:  meshgatev1connect.NewEnrolmentClient(h, base, options...),
		mesh:       v1connect.NewMeshClient(h, base, options...),
		admin:      v1connect.NewAdminClient(h, base, options...),
	}
}

// maxWindow is how much a server may send before it is read, in bytes.
const maxWindow = 4 << 20

func (c *clients) close() { c.transport.CloseIdleConnections() }

// as makes m a request of a node or user.
func as[M any](id string, m *M) *connect.Request[M] {
	r := connect.NewRequest(m)
	r.Header().Set("Authorization", "Bearer "+tokenOf(id))
	return r
}
