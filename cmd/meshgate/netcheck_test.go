// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/netcheck"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestTargetsOf_GathersTheServersOfEachGateway(t *testing.T) {
	list := &meshgatev1.ListServersResponse{
		IceServers: []*v1.ICEServer{
			{Urls: []string{"stun:192.0.2.1:3478"}},
			{Urls: []string{"turn:192.0.2.1:3478?transport=udp", "turns:192.0.2.1:443?transport=tcp", "turn:[2001:db8::1]:3478?transport=udp"}, Username: "u", Credential: "p"},
			{Urls: []string{"stun:192.0.2.9"}},
		},
		Gateways: []*meshgatev1.GatewayPorts{{Id: "gw1", WireguardEndpoints: []string{"192.0.2.1:51820", "[2001:db8::1]:51820", "nonsense"}}},
	}
	got := targetsOf(t.Context(), list, "https://192.0.2.1", peer.TLSOptions{})
	if len(got) != 2 || got[0].Gateway != "gw1" || got[1].Gateway != "192.0.2.9" {
		t.Fatalf("%+v", got)
	}
	if want := []string{"192.0.2.1:3478", "192.0.2.1:51820", "[2001:db8::1]:51820", "[2001:db8::1]:3478"}; !slices.Equal(stunOf(got[0]), want) {
		t.Errorf("gw1: %v, want %v", stunOf(got[0]), want)
	}
	if want := []string{"192.0.2.9:3478"}; !slices.Equal(stunOf(got[1]), want) {
		t.Errorf("without a port: %v, want %v", stunOf(got[1]), want)
	}
	if len(got[0].TURN) != 3 || got[0].Username != "u" || got[0].Password != "p" || got[0].TLS == nil {
		t.Errorf("gw1: %+v", got[0])
	}
	// A gateway that tells nothing has its usual ports.
	got = targetsOf(t.Context(), nil, "https://192.0.2.1:8443", peer.TLSOptions{})
	if want := []string{"192.0.2.1:3478", "192.0.2.1:51820"}; len(got) != 1 || !slices.Equal(stunOf(got[0]), want) || len(got[0].TURN) != 0 {
		t.Errorf("%+v", got)
	}
}

// On the host of a node, what the node believes is believed without a flag.
func TestTargetsOf_BelieveWhomTheNodeBelieves(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	pin := "sha256:" + strings.Repeat("01", sha256.Size)
	list := &meshgatev1.ListServersResponse{
		Gateways: []*meshgatev1.GatewayPorts{{Id: "gw1", ApiUrl: "https://192.0.2.1"}, {Id: "gw2", ApiUrl: "https://192.0.2.2"}},
		Trust:    &meshgatev1.GatewayTrust{Authorities: ca},
	}
	// pinned says which of both gateways are believed by their keys.
	pinned := func(trust peer.TLSOptions) (of [2]bool) {
		t.Helper()
		got := targetsOf(t.Context(), list, "", trust)
		if len(got) != 2 {
			t.Fatalf("%+v", got)
		}
		for i, target := range got {
			of[i] = target.TLS.VerifyConnection != nil
			if want := trust.RootCAs == nil; pool.Equal(target.TLS.RootCAs) != want {
				t.Errorf("%s: of the node's authorities: %t, want %t", target.Gateway, !want, want)
			}
		}
		return of
	}
	if got := pinned(peer.TLSOptions{}); got != [2]bool{} {
		t.Errorf("without a pin: %v", got)
	}
	list.Trust.Url, list.Trust.Pin = "https://192.0.2.2", pin
	if got := pinned(peer.TLSOptions{}); got != [2]bool{false, true} {
		t.Errorf("pinned at the second: %v", got)
	}
	// What the user says counts more.
	if got := pinned(peer.TLSOptions{RootCAs: x509.NewCertPool()}); got != [2]bool{} {
		t.Errorf("with authorities of the user: %v", got)
	}
}

func stunOf(t netcheck.Target) (list []string) {
	for _, at := range t.STUN {
		list = append(list, at.String())
	}
	return list
}
