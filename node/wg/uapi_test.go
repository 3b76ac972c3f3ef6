// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/meshgate/meshgate/node/mesh"
)

const (
	hexA = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	hexB = "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2"
)

// fullState is an answer with everything in it.
const fullState = "private_key=" + hexA + "\nlisten_port=51820\nfwmark=1\n" +
	"public_key=" + hexB + "\npreshared_key=" + hexA + "\nprotocol_version=1\nendpoint=[fd00::1]:51820\n" +
	"last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=10\nrx_bytes=18446744073709551615\n" +
	"persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/64\n" +
	"public_key=" + hexA + "\nprotocol_version=1\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"

func TestParseUAPI_ReadsEverything(t *testing.T) {
	s, err := parseUAPI(fullState)
	if err != nil {
		t.Fatal(err)
	}
	keyA, keyB := mesh.WireGuardKey{}, mesh.WireGuardKey{}
	for i := range keyA {
		keyA[i], keyB[i] = 0xa1, 0xb2
	}
	want := []mesh.PeerStats{
		{PublicKey: keyA},
		{
			PublicKey: keyB, Endpoint: "[fd00::1]:51820", LastHandshake: time.Unix(1700000000, 5),
			Keepalive: 25 * time.Second, TransmitBytes: 10, ReceiveBytes: 1<<64 - 1,
			AllowedIPs: prefixes("10.0.0.0/8", "fd00::/64"),
		},
	}
	if diff := cmp.Diff(want, s.sortedPeers(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	if s.privateKey != mesh.WireGuardPrivateKey(keyA) || s.listenPort != 51820 {
		t.Errorf("device section: port %d", s.listenPort)
	}
}

func TestParseUAPI_RefusesWhatItDoesNotKnow(t *testing.T) {
	peer := "public_key=" + hexB + "\n"
	for name, text := range map[string]string{
		"no value":         "listen_port\n",
		"empty line":       "\n",
		"unknown key":      "colour=red\n",
		"peer key first":   "tx_bytes=1\n",
		"allowed ip first": "allowed_ip=10.0.0.0/8\n",
		"port":             "listen_port=65536\n",
		"negative port":    "listen_port=-1\n",
		"mark":             "fwmark=x\n",
		"short key":        "private_key=" + hexA[:62] + "\n",
		"not hex":          "private_key=z" + hexA[1:] + "\n",
		"device key twice": "listen_port=1\nlisten_port=1\n",
		"peer twice":       peer + peer,
		"peer key twice":   peer + "tx_bytes=1\ntx_bytes=1\n",
		"device key later": peer + "listen_port=1\n",
		"version":          peer + "protocol_version=2\n",
		"preshared key":    peer + "preshared_key=00\n",
		"nanoseconds":      peer + "last_handshake_time_nsec=1000000000\n",
		"negative nano":    peer + "last_handshake_time_nsec=-1\n",
		"seconds":          peer + "last_handshake_time_sec=soon\n",
		"bytes":            peer + "rx_bytes=-1\n",
		"many bytes":       peer + "rx_bytes=18446744073709551616\n",
		"keepalive":        peer + "persistent_keepalive_interval=65536\n",
		"prefix":           peer + "allowed_ip=10.0.0.0/33\n",
		"unmasked prefix":  peer + "allowed_ip=10.0.0.1/8\n",
		"status line":      "errno=0\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseUAPI(text); !errors.Is(err, errUAPI) {
				t.Errorf("parseUAPI = %v, want errUAPI", err)
			}
		})
	}
}

func TestParseUAPI_ErrorsKeepSecrets(t *testing.T) {
	_, err := parseUAPI("private_key=" + hexA + "0\n")
	if err == nil || strings.Contains(err.Error(), hexA[:8]) {
		t.Errorf("error %q", err)
	}
}

// FuzzParseUAPI checks that no text panics and that what is accepted makes sense.
func FuzzParseUAPI(f *testing.F) {
	f.Add(fullState)
	f.Add("")
	f.Add("public_key=" + hexB + "\nallowed_ip=::/0\nendpoint=attached:7\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseUAPI(text)
		if err != nil {
			if !errors.Is(err, errUAPI) {
				t.Errorf("error %v", err)
			}
			return
		}
		peers := s.sortedPeers()
		if strings.Count("\n"+text, "\npublic_key=") != len(peers) {
			t.Errorf("%d peers of %q", len(peers), text)
		}
		for _, p := range peers {
			for _, prefix := range p.AllowedIPs {
				if prefix != prefix.Masked() {
					t.Errorf("prefix %v", prefix)
				}
			}
		}
	})
}
