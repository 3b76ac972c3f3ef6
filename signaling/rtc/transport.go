// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v2"
	"github.com/pion/dtls/v2/pkg/crypto/fingerprint"
	"github.com/pion/dtls/v2/pkg/crypto/selfsign"
	"github.com/pion/ice/v2"
	"github.com/pion/sctp"
	"github.com/pion/webrtc/v3"
)

// sctpMTU keeps an SCTP packet with its DTLS, UDP and IPv6 headers and a TURN
// header inside 1280 bytes, the least that IPv6 paths carry.
const sctpMTU = 1191

// connectICE returns the path as a connection, once ICE has found one.
func (p *Peer) connectICE(ctx context.Context, remote *description, controlling bool) (*dtlsLink, error) {
	err := p.agent.OnConnectionStateChange(func(s ice.ConnectionState) {
		if s == ice.ConnectionStateFailed {
			p.shut(fmt.Errorf("%w: no answer on any path", ErrFailed))
		}
	})
	if err != nil {
		return nil, err
	}
	connect := p.agent.Accept
	if controlling {
		connect = p.agent.Dial
	}
	conn, err := connect(ctx, remote.ufrag, remote.pwd)
	if err != nil {
		return nil, fmt.Errorf("%w: ICE: %w", ErrFailed, err)
	}
	return &dtlsLink{Conn: conn, end: p.closeAgent}, nil
}

// dtlsLink is the ICE path with everything but DTLS filtered out (RFC 7983).
type dtlsLink struct {
	*ice.Conn
	end func() // closes the agent
	// stands is set after the DTLS handshake.
	stands atomic.Bool
}

func (l *dtlsLink) Read(b []byte) (int, error) {
	for {
		n, err := l.Conn.Read(b)
		if err != nil || n > 0 && b[0] >= 20 && b[0] <= 63 {
			return n, err
		}
	}
}

// SetReadDeadline ends the link if t is past and DTLS does not stand yet: that
// is how a failed handshake ends its blocked read, and ICE has no deadlines.
// Later, DTLS sets it before it says goodbye, and closes the link after that.
func (l *dtlsLink) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && !t.After(time.Now()) && !l.stands.Load() {
		return l.Close()
	}
	return nil
}

// Close ends the agent, which is the only way to end a blocked Read.
func (l *dtlsLink) Close() error {
	l.end()
	return nil
}

// certificate is what one peer shows in its handshake, and its fingerprint.
// Each peer has its own, so that nobody can tell that two are of one engine.
type certificate struct {
	tls.Certificate
	fingerprint webrtc.DTLSFingerprint
}

func newCertificate() (*certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := selfsign.SelfSign(key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	value, err := fingerprint.Fingerprint(leaf, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	print := webrtc.DTLSFingerprint{Algorithm: "sha-256", Value: strings.ToUpper(value)}
	return &certificate{Certificate: cert, fingerprint: print}, nil
}

// connectDTLS runs the handshake and checks the certificate against the
// description, which is what ties the connection to the signalling.
func (p *Peer) connectDTLS(ctx context.Context, link *dtlsLink, remote *description, client bool) (*recordConn, error) {
	cfg := &dtls.Config{
		Certificates: []tls.Certificate{p.cert.Certificate},
		CipherSuites: []dtls.CipherSuiteID{
			dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		},
		// No media flows, but pion/webrtc ends a handshake without a profile.
		SRTPProtectionProfiles: []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80},
		ClientAuth:             dtls.RequireAnyClientCert,
		ExtendedMasterSecret:   dtls.RequireExtendedMasterSecret,
		InsecureSkipVerify:     true, // certificates are self-signed; the fingerprint is the check
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			return verifyFingerprint(raw, remote.fingerprints)
		},
		LoggerFactory: p.engine.logs,
	}
	// pion's handshake ignores ctx while it is blocked in a read.
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	handshake := dtls.ServerWithContext
	if client {
		handshake = dtls.ClientWithContext
	}
	conn, err := handshake(ctx, link, cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: DTLS: %w", ErrFailed, err)
	}
	link.stands.Store(true)
	return &recordConn{
		Conn: conn, count: &p.records, limit: func() { p.shut(ErrRecordLimit) }, inspect: p.inspect,
	}, nil
}

// verifyFingerprint accepts a certificate that one of the fingerprints names.
// Only the SHA-2 family counts (RFC 8122 section 5).
func verifyFingerprint(raw [][]byte, want []webrtc.DTLSFingerprint) error {
	if len(raw) == 0 {
		return errors.New("no certificate")
	}
	cert, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return fmt.Errorf("parse certificate: %w", err)
	}
	for _, f := range want {
		if !strings.HasPrefix(f.Algorithm, "sha-") || f.Algorithm == "sha-1" {
			continue
		}
		hash, err := fingerprint.HashFromString(f.Algorithm)
		if err != nil {
			continue
		}
		have, err := fingerprint.Fingerprint(cert, hash)
		if err != nil {
			continue
		}
		if subtle.ConstantTimeCompare([]byte(strings.ToLower(have)), []byte(strings.ToLower(f.Value))) == 1 {
			return nil
		}
	}
	return errors.New("certificate does not match the description")
}

func (p *Peer) sctpOptions(conn net.Conn) []sctp.ClientOption {
	return []sctp.ClientOption{
		sctp.WithNetConn(conn),
		sctp.WithLoggerFactory(p.engine.logs),
		sctp.WithMTU(sctpMTU),
		sctp.WithMaxReceiveBufferSize(p.window),
		sctp.WithMaxMessageSize(MaxMessageSize),
	}
}

// recordCount counts DTLS records in each direction against two limits.
type recordCount struct {
	sent, received atomic.Uint64
	soft, hard     uint64
	renew          chan struct{} // closed at the soft limit
	once           *sync.Once
}

func newRecordCount(soft, hard uint64) recordCount {
	return recordCount{soft: soft, hard: hard, renew: make(chan struct{}), once: new(sync.Once)}
}

// add counts one record and says whether the hard limit is reached.
func (c *recordCount) add(direction *atomic.Uint64) bool {
	n := direction.Add(1)
	if n >= c.soft {
		c.once.Do(func() { close(c.renew) })
	}
	return n >= c.hard
}

// recordConn is the DTLS connection under SCTP. Each Read and each Write is
// one record of application data; handshake records are not counted, a
// handshake has a dozen.
type recordConn struct {
	net.Conn
	count   *recordCount
	limit   func()
	inspect func(packet []byte) // of each packet that was read
}

func (c *recordConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	if c.count.add(&c.count.received) {
		c.limit()
	}
	c.inspect(b[:n])
	return n, nil
}

func (c *recordConn) Write(b []byte) (int, error) {
	if c.count.add(&c.count.sent) {
		c.limit()
		return 0, ErrRecordLimit
	}
	return c.Conn.Write(b)
}

func joinHostPort(host string, port int) string {
	return net.JoinHostPort(host, strconv.Itoa(port))
}
