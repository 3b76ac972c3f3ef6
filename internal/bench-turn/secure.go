// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// listenTLS serves TLS at an address, with a certificate that is its own authority. It
// returns that in DER.
func listenTLS(at netip.AddrPort) (net.Listener, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{at.Addr().AsSlice()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), // longer than any run
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	l, err := tls.Listen("tcp", at.String(), &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	return l, der, err
}

// dialTLS connects to a server of listenTLS.
func dialTLS(to login) (net.Conn, error) {
	certificate, err := x509.ParseCertificate(to.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of the server: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: streamPatience}, "tcp", to.Secure.String(), &tls.Config{RootCAs: roots})
	if err != nil {
		return nil, err
	}
	return conn, nil
}
