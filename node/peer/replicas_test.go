// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// town is the keys of gateways that know each other.
type town map[mesh.NodeID]mesh.PrivateKey

func newTown(t *testing.T, ids ...mesh.NodeID) town {
	t.Helper()
	out := town{}
	for _, id := range ids {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		out[id] = key
	}
	return out
}

func (n town) keyOf(id mesh.NodeID) (mesh.PublicKey, bool) {
	key, ok := n[id]
	return key.Public(), ok
}

func (n town) nodeOf(key mesh.PublicKey) (mesh.NodeID, bool) {
	for id, have := range n {
		if have.Public() == key {
			return id, true
		}
	}
	return "", false
}

// replicasOf makes the replicas of a gateway that knows a town.
func replicasOf(t *testing.T, key mesh.PrivateKey, known town) *Replicas {
	t.Helper()
	r, err := NewReplicas(ReplicasConfig{Key: key, KeyOf: known.keyOf, NodeOf: known.nodeOf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// open serves r on a port of this machine and returns its address.
func (r *Replicas) open(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.Serve(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestReplicas_BothEndsKnowEachOther(t *testing.T) {
	all := newTown(t, "gw1", "gw2")
	one, two := replicasOf(t, all["gw1"], all), replicasOf(t, all["gw2"], all)
	address := two.open(t)
	type got struct {
		conn net.Conn
		id   string
		err  error
	}
	accepted := make(chan got, 1)
	go func() {
		conn, id, err := two.Accept()
		accepted <- got{conn, id, err}
	}()
	conn, err := one.Dial(t.Context(), "gw2", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	a := <-accepted
	if a.err != nil || a.id != "gw1" {
		t.Fatalf("accepted %q: %v", a.id, a.err)
	}
	defer a.conn.Close()
	buf := make([]byte, 5)
	if _, err := io.ReadFull(a.conn, buf); err != nil || string(buf) != "hello" {
		t.Errorf("read %q: %v", buf, err)
	}
}

func TestReplicas_DialRefusesOtherKeys(t *testing.T) {
	all := newTown(t, "gw1", "gw2", "gw3")
	one, three := replicasOf(t, all["gw1"], all), replicasOf(t, all["gw3"], all)
	address := three.open(t)
	for name, c := range map[string]struct {
		id, address string
		want        error
	}{
		"another gateway at the address": {"gw2", address, mesh.ErrDenied},
		"a gateway that nobody knows":    {"gw9", address, mesh.ErrNotFound},
		"no port":                        {"gw3", "127.0.0.1", mesh.ErrInvalid},
	} {
		conn, err := one.Dial(t.Context(), c.id, c.address)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}

// refuses fails unless the other end ends conn without a byte.
func refuses(t *testing.T, name string, conn *tls.Conn, err error) {
	t.Helper()
	if err != nil {
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	if netErr, ok := errors.AsType[net.Error](err); n > 0 || err == nil || (ok && netErr.Timeout()) {
		t.Errorf("%s is not refused: %d, %v", name, n, err)
	}
}

func TestReplicas_StrangersAreRefused(t *testing.T) {
	all, strangers := newTown(t, "gw1", "gw2"), newTown(t, "gw2")
	one := replicasOf(t, all["gw1"], all)
	address := one.open(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, id, err := one.Accept()
			if err != nil {
				return
			}
			t.Errorf("let in as %q", id)
			_ = conn.Close()
		}
	}()
	defer func() { _ = one.Close(); <-ended }()
	dial := func(cfg *tls.Config) (*tls.Conn, error) {
		cfg.InsecureSkipVerify = true
		cfg.NextProtos = []string{ReplicaProtocol}
		return tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, cfg)
	}
	conn, err := dial(&tls.Config{})
	refuses(t, "who shows no key", conn, err)

	stranger, err := certify(strangers["gw2"])
	if err != nil {
		t.Fatal(err)
	}
	conn, err = dial(&tls.Config{Certificates: []tls.Certificate{stranger}})
	refuses(t, "a key that nobody knows", conn, err)

	known, err := certify(all["gw2"])
	if err != nil {
		t.Fatal(err)
	}
	conn, err = dial(&tls.Config{Certificates: []tls.Certificate{known}, MaxVersion: tls.VersionTLS12})
	refuses(t, "TLS 1.2", conn, err)

	// The certificate of a gateway is no secret; its key is.
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conn, err = dial(&tls.Config{Certificates: []tls.Certificate{{Certificate: known.Certificate, PrivateKey: liar{known.PrivateKey.(nodeSigner), other}}}})
	refuses(t, "a copied certificate", conn, err)

	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, ecKey.Public(), ecKey)
	if err != nil {
		t.Fatal(err)
	}
	conn, err = dial(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: ecKey}}})
	refuses(t, "a key of another kind", conn, err)
}

// liar has the public half of one key and signs with another.
type liar struct {
	nodeSigner
	key ed25519.PrivateKey
}

func (l liar) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	return ed25519.Sign(l.key, message), nil
}

func TestReplicas_CloseEndsAccept(t *testing.T) {
	all := newTown(t, "gw1")
	r := replicasOf(t, all["gw1"], all)
	ended := make(chan error, 1)
	go func() {
		_, _, err := r.Accept()
		ended <- err
	}()
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

func TestNewReplicas_NeedsItsFields(t *testing.T) {
	if _, err := NewReplicas(ReplicasConfig{}); err == nil {
		t.Error("made without a key")
	}
}
