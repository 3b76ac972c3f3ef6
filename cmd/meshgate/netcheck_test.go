// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
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

func stunOf(t netcheck.Target) (list []string) {
	for _, at := range t.STUN {
		list = append(list, at.String())
	}
	return list
}
