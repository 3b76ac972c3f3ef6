// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// ReplicaProtocol is the name, for ALPN, of what gateways speak with each other
// to keep the state of the mesh together.
const ReplicaProtocol = "meshgate-raft/1"

// acceptWait is how long a connection that was greeted waits for Accept.
const acceptWait = 5 * time.Second

// ReplicasConfig says who is at the ends of the connections of Replicas.
type ReplicasConfig struct {
	// Key is the identity of this node. Required.
	Key mesh.PrivateKey
	// KeyOf is the key of a node that may be dialled; false when nobody knows
	// one. Required.
	KeyOf func(mesh.NodeID) (mesh.PublicKey, bool)
	// NodeOf is the node that has a key; false for keys of strangers, which are
	// refused. Required.
	NodeOf func(mesh.PublicKey) (mesh.NodeID, bool)
	// Logger is told of refusals; nil discards.
	Logger *slog.Logger
}

// Replicas makes connections between gateways, over TLS 1.3 and without any
// part of the mesh. Each end proves that it holds the key of its node;
// certificates carry the keys and nothing else that counts: neither names nor
// dates nor authorities. It is safe for concurrent use.
type Replicas struct {
	cfg      ReplicasConfig
	tls      *tls.Config // what both sides have in common
	accepted chan replicaConn
	done     chan struct{} // closed by Close
	close    sync.Once
}

// replicaConn is a connection on its way to Accept.
type replicaConn struct {
	conn net.Conn
	peer mesh.NodeID
}

// NewReplicas makes Replicas. End them with Close.
func NewReplicas(cfg ReplicasConfig) (*Replicas, error) {
	if cfg.Key.IsZero() || cfg.KeyOf == nil || cfg.NodeOf == nil {
		return nil, errors.New("peer: ReplicasConfig.Key, KeyOf and NodeOf are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	certificate, err := certify(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the node key: %w", err)
	}
	return &Replicas{
		cfg: cfg,
		tls: &tls.Config{
			MinVersion:   tls.VersionTLS13,
			NextProtos:   []string{ReplicaProtocol},
			Certificates: []tls.Certificate{certificate},
			// Each connection has its own proof of who is there.
			SessionTicketsDisabled: true,
		},
		accepted: make(chan replicaConn),
		done:     make(chan struct{}),
	}, nil
}

// Serve takes over a connection from another node whose ClientHello, which is
// still to be read, asks for ReplicaProtocol. It returns once Accept has the
// connection or nobody will get it. ctx ends the greeting.
func (r *Replicas) Serve(ctx context.Context, raw net.Conn) {
	conn, id, err := r.greet(ctx, raw)
	if err != nil {
		r.cfg.Logger.Debug("replica refused", "component", "peer", "addr", raw.RemoteAddr().String(), "err", err)
		_ = raw.Close() // nothing was promised to it
		return
	}
	wait := time.NewTimer(acceptWait)
	defer wait.Stop()
	select {
	case r.accepted <- replicaConn{conn, id}:
		return
	case <-r.done:
	case <-wait.C:
	case <-ctx.Done():
	}
	_ = conn.Close() // the other end tries again
}

// greet is the handshake with a node that dialled this one.
func (r *Replicas) greet(ctx context.Context, raw net.Conn) (net.Conn, mesh.NodeID, error) {
	var id mesh.NodeID
	cfg := r.tls.Clone()
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		key, err := keyOf(s)
		if err != nil {
			return err
		}
		var known bool
		if id, known = r.cfg.NodeOf(key); !known {
			return fmt.Errorf("%w: no gateway of this mesh has the key %s", mesh.ErrDenied, key)
		}
		return nil
	}
	conn := tls.Server(raw, cfg)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, "", err
	}
	return conn, id, nil
}

// Accept returns the next connection of another node and the id of that node.
// After Close it returns net.ErrClosed.
func (r *Replicas) Accept() (net.Conn, string, error) {
	select {
	case c := <-r.accepted:
		return c.conn, string(c.peer), nil
	case <-r.done:
		return nil, "", net.ErrClosed
	}
}

// Dial opens a connection to node id, which listens at address, "host:port".
// Who answers with another key than that of the node is refused.
func (r *Replicas) Dial(ctx context.Context, id, address string) (net.Conn, error) {
	want, ok := r.cfg.KeyOf(mesh.NodeID(id))
	if !ok {
		return nil, fmt.Errorf("%w: the key of gateway %q is not known here", mesh.ErrNotFound, id)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w: address %q of gateway %q: write it as host:port", mesh.ErrInvalid, address, id)
	}
	cfg := r.tls.Clone()
	cfg.ServerName = host         // for those who route by it
	cfg.InsecureSkipVerify = true // VerifyConnection checks the key in its place
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		have, err := keyOf(s)
		if err != nil {
			return err
		}
		if have != want {
			return fmt.Errorf("%w: who answers at %s has the key %s, gateway %q has %s: is the address that of another gateway?", mesh.ErrDenied, address, have, id, want)
		}
		return nil
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: cfg}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return d.DialContext(ctx, "tcp", address)
}

// Close ends Accept, and refuses what comes later. Connections that were handed
// out belong to who got them. It may be called again.
func (r *Replicas) Close() error {
	r.close.Do(func() { close(r.done) })
	return nil
}

// keyOf is the key that the other end of a connection has proven to hold.
func keyOf(s tls.ConnectionState) (mesh.PublicKey, error) {
	if s.NegotiatedProtocol != ReplicaProtocol {
		return mesh.PublicKey{}, fmt.Errorf("%w: the other end does not speak %s: is it a gateway of a cluster?", mesh.ErrDenied, ReplicaProtocol)
	}
	if len(s.PeerCertificates) == 0 {
		return mesh.PublicKey{}, fmt.Errorf("%w: the other end shows no key", mesh.ErrDenied)
	}
	key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return mesh.PublicKey{}, fmt.Errorf("%w: the other end shows a key that is none of a node", mesh.ErrDenied)
	}
	return mesh.PublicKey(key), nil
}

// certify signs a certificate for a node's key with that key. It is made anew at
// each start, kept nowhere, and never ends (RFC 5280 section 4.1.2.5): a clock
// that is wrong must not keep a cluster from starting.
func certify(key mesh.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "Meshgate gateway"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	signer := nodeSigner{key}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}, nil
}

// nodeSigner is a node's key as package tls takes it, which never sees the
// secret.
type nodeSigner struct{ key mesh.PrivateKey }

var _ crypto.Signer = nodeSigner{}

// Public implements crypto.Signer.
func (s nodeSigner) Public() crypto.PublicKey {
	key := s.key.Public()
	return ed25519.PublicKey(key[:])
}

// Sign implements crypto.Signer for Ed25519, which signs whole messages.
func (s nodeSigner) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != 0 {
		return nil, fmt.Errorf("%w: a node's key signs messages, not their hashes", mesh.ErrUnsupported)
	}
	return s.key.Sign(message), nil
}
