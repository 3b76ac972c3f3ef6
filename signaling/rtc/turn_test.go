// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v3"
)

// turnServer serves UDP, TCP and TLS on loopback and returns the three URLs,
// and the roots for the last.
func turnServer(t *testing.T) (urls map[string]string, roots *x509.CertPool) {
	t.Helper()
	_, urls, roots = turnServerAt(t, nil)
	return urls, roots
}

// turnServerAt is turnServer with the server itself, on a UDP socket that wrap has
// been around; nil leaves it as it is.
func turnServerAt(t *testing.T, wrap func(net.PacketConn) net.PacketConn) (s *turn.Server, urls map[string]string, roots *x509.CertPool) {
	t.Helper()
	relay := func() turn.RelayAddressGenerator {
		return &turn.RelayAddressGeneratorStatic{RelayAddress: net.IPv4(127, 0, 0, 1), Address: "127.0.0.1"}
	}
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := udp
	if wrap != nil {
		socket = wrap(udp)
	}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := loopbackCertificate(t)
	secure, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	s, err = turn.NewServer(turn.ServerConfig{
		Realm: "test", LoggerFactory: quiet,
		AuthHandler: func(user, realm string, _ net.Addr) ([]byte, bool) {
			return turn.GenerateAuthKey(user, realm, "secret"), true
		},
		PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: socket, RelayAddressGenerator: relay()}},
		ListenerConfigs: []turn.ListenerConfig{
			{Listener: tcp, RelayAddressGenerator: relay()}, {Listener: secure, RelayAddressGenerator: relay()},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, map[string]string{
		"udp": "turn:" + udp.LocalAddr().String(),
		"tcp": "turn:" + tcp.Addr().String() + "?transport=tcp",
		"tls": "turns:" + secure.Addr().String() + "?transport=tcp",
	}, roots
}

func TestPeer_RelayedOverEachTransport(t *testing.T) {
	urls, roots := turnServer(t)
	for name, url := range urls {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, Config{TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
			p, err := e.NewPeer(context.Background(), PeerConfig{
				RelayOnly: true,
				Servers:   []ICEServer{{URLs: []string{url}, Username: "alice", Credential: "secret"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			q := newPeer(t, newEngine(t, Config{}))
			connect(t, p, q)
			if path := p.Path(); path.Kind != "relayed" {
				t.Fatalf("path %+v", path)
			}
			_ = p.Close()
			<-q.Done()
		})
	}
}

// A peer that waits for a server that says nothing ends at once.
func TestPeer_CloseEndsGathering(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	hole, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	e := newEngine(t, Config{})
	p, err := e.NewPeer(context.Background(), PeerConfig{Servers: []ICEServer{{
		URLs: []string{
			"stun:" + silent.LocalAddr().String(), "turn:" + silent.LocalAddr().String(),
			"turns:" + hole.Addr().String() + "?transport=tcp",
		},
		Username: "alice", Credential: "secret",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Offer(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_ = p.Close()
	if d := time.Since(begin); d > 3*time.Second {
		t.Fatalf("Close took %v", d)
	}
}
