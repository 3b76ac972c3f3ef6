// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// TLSOptions say whom a client believes. The zero value believes the
// certificate authorities of the system.
type TLSOptions struct {
	// RootCAs replaces the certificate authorities of the system; nil keeps them.
	RootCAs *x509.CertPool
	// Pin is the SHA-256 of the server's SubjectPublicKeyInfo. When set, the
	// server with that key is believed and nobody else is: authorities, names
	// and dates do not count. It is how a self-signed gateway is trusted.
	Pin [sha256.Size]byte
	// Dial connects to the server; nil means net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Public is a client of a gateway on its public address.
type Public struct {
	transport *http.Transport
	client    *http.Client
	base      string
	// token is shown with every call.
	token func() string
	// clock is that of the gateway.
	clock clock
}

// NewPublic makes a client of the gateway at baseURL, "https://host[:port]",
// that shows token with every call; an empty token shows none. Plain "http://"
// is accepted for loopback addresses only, because a token must not cross a
// network in clear. End it with Close.
func NewPublic(baseURL, token string, opts TLSOptions) (*Public, error) {
	return newPublic(baseURL, func(time.Time) string { return token }, opts)
}

// NewPublicNode makes a client that shows with every call what sign makes of the
// gateway's time: the credential of a node that has no token of that gateway.
func NewPublicNode(baseURL string, sign func(at time.Time) string, opts TLSOptions) (*Public, error) {
	return newPublic(baseURL, sign, opts)
}

func newPublic(baseURL string, token func(at time.Time) string, opts TLSOptions) (*Public, error) {
	u, err := parseBase(baseURL)
	if err != nil {
		return nil, err
	}
	t := newTransport()
	if t.DialContext = opts.Dial; t.DialContext == nil {
		t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	t.Proxy = http.ProxyFromEnvironment
	t.Protocols.SetHTTP2(true)
	if u.Scheme == "http" {
		t.Protocols.SetUnencryptedHTTP2(true)
		t.Proxy = nil
	}
	t.TLSClientConfig = clientTLS(opts)
	p := &Public{transport: t, client: newHTTPClient(t), base: strings.TrimSuffix(u.String(), "/")}
	if u.Scheme == "http" {
		p.client.Transport = suspectsTLS{p.client.Transport}
	}
	p.client.Transport = keepsTime{p.client.Transport, &p.clock}
	p.token = func() string { return token(p.clock.now()) }
	return p, nil
}

// Close ends idle connections. Calls under way keep theirs until they end.
func (p *Public) Close() { p.transport.CloseIdleConnections() }

// URL is the address of the gateway as it was given, without a slash at its end.
func (p *Public) URL() string { return p.base }

// Host is the name or address of the gateway, without its port.
func (p *Public) Host() string {
	u, err := url.Parse(p.base)
	if err != nil {
		return "" // NewPublic has parsed it
	}
	return u.Hostname()
}

// Admin is the client of the Admin service.
func (p *Public) Admin() v1connect.AdminClient {
	return v1connect.NewAdminClient(p.client, p.base, clientOptions(p.token)...)
}

// StorageQuery is the client of the StorageQueryService.
func (p *Public) StorageQuery() v1connect.StorageQueryServiceClient {
	return v1connect.NewStorageQueryServiceClient(p.client, p.base, clientOptions(p.token)...)
}

// Node is the client of the Node service.
func (p *Public) Node() v1connect.NodeClient {
	return v1connect.NewNodeClient(p.client, p.base, clientOptions(p.token)...)
}

// Mesh is the client of the Mesh service.
func (p *Public) Mesh() v1connect.MeshClient {
	return v1connect.NewMeshClient(p.client, p.base, clientOptions(p.token)...)
}

// Membership is the client of the Membership service.
func (p *Public) Membership() v1connect.MembershipClient {
	return v1connect.NewMembershipClient(p.client, p.base, clientOptions(p.token)...)
}

// Enrolment is the client of the Enrolment service.
func (p *Public) Enrolment() meshgatev1connect.EnrolmentClient {
	return meshgatev1connect.NewEnrolmentClient(p.client, p.base, clientOptions(p.token)...)
}

// Cluster is the client of the Cluster service.
func (p *Public) Cluster() meshgatev1connect.ClusterClient {
	return meshgatev1connect.NewClusterClient(p.client, p.base, clientOptions(p.token)...)
}

// Store is the client of the Store service.
func (p *Public) Store() meshgatev1connect.StoreClient {
	return meshgatev1connect.NewStoreClient(p.client, p.base, clientOptions(p.token)...)
}

// Tokens is the client of the Tokens service.
func (p *Public) Tokens() meshgatev1connect.TokensClient {
	return meshgatev1connect.NewTokensClient(p.client, p.base, clientOptions(p.token)...)
}

// Objects is the client of the Objects service.
func (p *Public) Objects() meshgatev1connect.ObjectsClient {
	return meshgatev1connect.NewObjectsClient(p.client, p.base, clientOptions(p.token)...)
}

// Member is the client with which nodes join and follow the gateway.
func (p *Public) Member() *Member { return NewMember(p.Membership(), p.Enrolment()) }

// Pairs is what nodes that are a pair ask of the gateway.
func (p *Public) Pairs() *Pairs {
	return NewPairs(meshgatev1connect.NewPairsClient(p.client, p.base, clientOptions(p.token)...), p.WebRTC())
}

// WebRTC is the client of the WebRTC service.
func (p *Public) WebRTC() v1connect.WebRTCClient {
	return v1connect.NewWebRTCClient(p.client, p.base, clientOptions(p.token)...)
}

// Watch is the client of the Watch service.
func (p *Public) Watch() meshgatev1connect.WatchClient {
	return meshgatev1connect.NewWatchClient(p.client, p.base, clientOptions(p.token)...)
}

// parseBase checks the address of a gateway.
func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil && strings.Contains(s, "://"):
		return nil, fmt.Errorf("%w: gateway address %q: %w", mesh.ErrInvalid, s, err)
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return nil, fmt.Errorf("%w: gateway address %q: write it as https://host:port", mesh.ErrInvalid, s)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%w: gateway address has a user, query or fragment: write it as https://host:port", mesh.ErrInvalid)
	case u.Scheme == "http" && !IsLoopback(u.Hostname()):
		return nil, fmt.Errorf("%w: gateway address %q: a token must not travel unencrypted; use https", mesh.ErrInvalid, s)
	}
	return u, nil
}

// IsLoopback reports whether host, a name or an address, is this machine itself.
func IsLoopback(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "localhost"
}

// Config returns these options as those of a client, for connections of other
// protocols to the same server.
func (o TLSOptions) Config() *tls.Config { return clientTLS(o) }

// clientTLS turns opts into a TLS configuration.
func clientTLS(opts TLSOptions) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: opts.RootCAs}
	if opts.Pin == [sha256.Size]byte{} {
		return cfg
	}
	cfg.InsecureSkipVerify = true // VerifyConnection checks the pin in its place, on resumed sessions too
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the server showed no certificate")
		}
		have := PinOf(s.PeerCertificates[0])
		if subtle.ConstantTimeCompare(have[:], opts.Pin[:]) != 1 {
			return fmt.Errorf("%w: it is sha256:%x: somebody is in between, or the gateway got a new key", errPin, have)
		}
		return nil
	}
	return cfg
}

// errPin is in the errors of a server with another key than the pinned one.
var errPin = errors.New("the pin of the server's key is not the expected one")

// Distrusted reports whether err says that what answered is not what the client
// was told to believe: another key, a certificate of nobody it knows or for
// another name, or no TLS at all. That a certificate is out of date is not among
// it: the clock of this host may not be set yet.
func Distrusted(err error) bool {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		return invalid.Reason != x509.Expired
	}
	var verification *tls.CertificateVerificationError
	return errors.Is(err, errPin) || errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &verification)
}

// suspectsTLS says what the end of a connection means that speaks no TLS.
type suspectsTLS struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (s suspectsTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := s.next.RoundTrip(r)
	var dial *net.OpError
	there := !errors.As(err, &dial) || dial.Op != "dial"
	// What the end of the connection is called depends on who notices it first.
	if err != nil && there && r.Context().Err() == nil {
		err = fmt.Errorf("%w: it ended the connection; if it speaks TLS, write https:// in its URL", err)
	}
	return res, err
}

// PinOf is the pin of a certificate's key, as TLSOptions takes it.
func PinOf(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
