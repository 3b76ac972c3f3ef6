// SPDX-License-Identifier: Apache-2.0

//go:build linux

package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startCoturn starts coturn's server on both loopback addresses.
func startCoturn(t *testing.T) (port, tlsPort uint16, config *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	certificate, pool := selfSigned(t, "localhost")
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config = &tls.Config{RootCAs: pool, ServerName: "localhost"}
	// Somebody else may have got a port that was free a moment ago: coturn goes on
	// without it, and says nothing.
	for range 5 {
		port, tlsPort = freePort(t), freePort(t)
		cmd := exec.Command("turnserver", "-n", "--no-cli", "--no-dtls", "--no-rfc5780", "--allow-loopback-peers", "--lt-cred-mech",
			"-L", "127.0.0.1", "-L", "::1", "-E", "127.0.0.1", "-E", "::1",
			"-p", fmt.Sprint(port), "--tls-listening-port", fmt.Sprint(tlsPort),
			"--cert", filepath.Join(dir, "cert.pem"), "--pkey", filepath.Join(dir, "key.pem"),
			"-u", testUser+":"+testPassword, "-r", testRealm, "--user-quota", "20",
			"--pidfile", filepath.Join(dir, "pid"), "--log-file", filepath.Join(dir, "log"), "--simple-log")
		cmd.Dir = dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := func() {
			cmd.Process.Kill()
			cmd.Wait()
		}
		if coturnAnswers(t, coturnURIs(port, tlsPort), config) {
			t.Cleanup(end)
			return port, tlsPort, config
		}
		end()
	}
	t.Fatal("coturn does not answer")
	return 0, 0, nil
}

// coturnAnswers reports whether coturn answers at all URIs: it opens them one by
// one.
func coturnAnswers(t *testing.T, uris []string, config *tls.Config) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for _, uri := range uris {
		for {
			once, stop := context.WithTimeout(ctx, time.Second)
			a, err := Allocate(once, Config{Server: uri, Username: testUser, Password: testPassword, TLS: config})
			if err == nil {
				stop()
				a.Close()
				break
			}
			<-once.Done() // a pause where it was refused at once
			stop()
			if ctx.Err() != nil {
				return false
			}
		}
	}
	return true
}

func coturnURIs(port, tlsPort uint16) []string {
	var uris []string
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		uris = append(uris, fmt.Sprintf("turn:%s:%d", host, port), fmt.Sprintf("turn:%s:%d?transport=tcp", host, port),
			fmt.Sprintf("turns:%s:%d", host, tlsPort))
	}
	return uris
}

// freePort returns a port that nobody listened on a moment ago, for UDP and TCP.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "[::]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		if c, err := net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port)); err == nil {
			c.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port is free")
	return 0
}

func TestInterop_Coturn(t *testing.T) {
	port, tlsPort, config := startCoturn(t)
	for _, family := range []Family{IPv4, IPv6} {
		for _, uri := range coturnURIs(port, tlsPort) {
			t.Run(fmt.Sprintf("family %d by %s", family, uri), func(t *testing.T) {
				cfg := Config{Server: uri, Username: testUser, Password: testPassword, Family: family, TLS: config}
				a, b := mustAllocate(t, cfg), mustAllocate(t, cfg)
				local := loopback
				if family == IPv6 {
					local = loopback6
				}
				if a.Relayed().Addr() != local {
					t.Fatalf("relayed %s, want an address of family %d", a.Relayed(), family)
				}
				c, peer := listenUDP(t, local)
				exchange(t, a, c, peer)
				meet(t, a, b)
				wrong := cfg
				wrong.Password = "wrong"
				if _, err := Allocate(t.Context(), wrong); !errors.Is(err, ErrCredential) {
					t.Errorf("a wrong password: %v", err)
				}
			})
		}
	}
}
