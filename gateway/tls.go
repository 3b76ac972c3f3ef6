// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	selfSignedCert = "tls-cert.pem"
	selfSignedKey  = "tls-key.pem"
	// selfSignedLife is the longest that browsers take certificates for.
	selfSignedLife = 397 * 24 * time.Hour
	// renewBefore is how long before its end a self-signed certificate is
	// replaced. The key stays, and with it the pin.
	renewBefore = 30 * 24 * time.Hour
	// clockSkew is how far a client's clock may be behind.
	clockSkew = time.Hour
)

// TLS says what certificate the public listener shows: either the one in
// CertFile and KeyFile, or one that the gateway signs itself.
type TLS struct {
	// CertFile and KeyFile are PEM files; when they change, the next
	// connection gets the new certificate.
	CertFile, KeyFile string
	// SelfSignedDir keeps the self-signed certificate and its key.
	SelfSignedDir string
	// Names are the host names and IP addresses in the self-signed certificate.
	Names []string
}

// Validate says what in t can never work, naming the field.
func (t *TLS) Validate() error {
	switch files := t.CertFile != "" || t.KeyFile != ""; {
	case files && (t.CertFile == "" || t.KeyFile == ""):
		return errors.New("gateway: TLS.CertFile and TLS.KeyFile go together")
	case files && t.SelfSignedDir != "":
		return errors.New("gateway: TLS has certificate files as well as SelfSignedDir; give one of them")
	case !files && t.SelfSignedDir == "":
		return errors.New("gateway: TLS has neither certificate files nor SelfSignedDir")
	case !files && len(t.Names) == 0:
		return errors.New("gateway: TLS.Names is empty; a self-signed certificate needs a name or address")
	}
	return nil
}

// Check says what is wrong with the certificate files; it looks at no others.
func (t *TLS) Check() error {
	if err := t.Validate(); err != nil || t.SelfSignedDir != "" {
		return err
	}
	_, err := watch(nil, parseCertificate, t.CertFile, t.KeyFile)
	return err
}

// Pin is the SHA-256 of the public key in the certificate, by which clients can
// recognise it. A self-signed one is made, unless it is there.
func (t *TLS) Pin() (pin [sha256.Size]byte, err error) {
	if err := t.Validate(); err != nil {
		return pin, err
	}
	c, err := openCertificates(*t, slog.New(slog.DiscardHandler))
	if err != nil {
		return pin, err
	}
	return c.pin(), nil
}

// certificates gives each handshake the certificate of the moment.
type certificates struct {
	files *watched[*tls.Certificate]
	self  *TLS // how to renew; nil for certificate files of others
	log   *slog.Logger

	renewing sync.Mutex // held while a new self-signed certificate is made
}

// openCertificates reads the certificate, or makes it where that is asked for.
func openCertificates(t TLS, log *slog.Logger) (*certificates, error) {
	c := &certificates{log: log}
	if t.SelfSignedDir != "" {
		t.CertFile = filepath.Join(t.SelfSignedDir, selfSignedCert)
		t.KeyFile = filepath.Join(t.SelfSignedDir, selfSignedKey)
		c.self = &t
		if err := ensureSelfSigned(t, time.Now()); err != nil {
			return nil, fmt.Errorf("self-signed certificate: %w", err)
		}
	}
	var err error
	if c.files, err = watch(log, parseCertificate, t.CertFile, t.KeyFile); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return c, nil
}

// current is the certificate to show now.
func (c *certificates) current() *tls.Certificate {
	cert := c.files.get()
	if now := time.Now(); c.self == nil || (time.Until(cert.Leaf.NotAfter) > renewBefore && !now.Before(cert.Leaf.NotBefore)) {
		return cert
	}
	c.renewing.Lock()
	defer c.renewing.Unlock()
	if err := ensureSelfSigned(*c.self, time.Now()); err != nil {
		c.log.Error("self-signed certificate not renewed; it ends soon", "err", err)
	}
	return c.files.get()
}

func parseCertificate(files [][]byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(files[0], files[1])
	return &c, err
}

// config is the server's side of TLS 1.2 with AEAD suites, or 1.3.
func (c *certificates) config(turn bool) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil },
	}
	if turn {
		// The first that the client offers, too, is taken. Clients of TURN may offer
		// HTTP as well, as that of coturn does; none of HTTP offers TURN.
		cfg.NextProtos = append([]string{alpnTURN}, cfg.NextProtos...)
	}
	return cfg
}

// pin is the hash of the current certificate's public key.
func (c *certificates) pin() [sha256.Size]byte {
	return sha256.Sum256(c.current().Leaf.RawSubjectPublicKeyInfo)
}

// ensureSelfSigned makes the certificate in t's files unless there is one that
// will do at now.
func ensureSelfSigned(t TLS, now time.Time) error {
	if err := os.MkdirAll(t.SelfSignedDir, 0o700); err != nil {
		return err
	}
	key, err := loadOrMakeKey(t.KeyFile)
	if err != nil {
		return err
	}
	if current, err := readCertificate(t.CertFile); err == nil && willDo(current, key, t.Names, now) {
		return nil
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Meshgate, signed by itself"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range t.Names {
		if addr, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	return writeSecret(t.CertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// willDo reports whether c is for key and names and lasts for a while.
func willDo(c *x509.Certificate, key *ecdsa.PrivateKey, names []string, now time.Time) bool {
	public, ok := c.PublicKey.(*ecdsa.PublicKey)
	// One from the future was made while the clock was wrong.
	if !ok || !public.Equal(key.Public()) || now.Add(renewBefore).After(c.NotAfter) || now.Before(c.NotBefore) {
		return false
	}
	return !slices.ContainsFunc(names, func(name string) bool { return c.VerifyHostname(name) != nil })
}

func readCertificate(path string) (*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

func loadOrMakeKey(path string) (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no private key; move it away to get a new one", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, not an ECDSA key; move it away to get a new one", path, parsed)
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeSecret(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// writeSecret replaces the file at path as a whole, readable by its owner only.
func writeSecret(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is gone when all went well
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
