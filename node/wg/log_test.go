// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// libraryPeer makes a peer as the library logs it.
func libraryPeer(t *testing.T) (*device.Peer, mesh.WireGuardKey) {
	t.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	plane, err := newNetstack("test", 1420, sizesOf(false), new(filter), newFramePool(minFrame), m)
	if err != nil {
		t.Fatal(err)
	}
	d := device.NewDevice(plane, conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	t.Cleanup(d.Close)
	public := key.Public().WireGuard()
	p, err := d.NewPeer(device.NoisePublicKey(public))
	if err != nil {
		t.Fatal(err)
	}
	return p, public
}

const (
	failedToSend = "%v - Failed to send handshake initiation: %v"
	gotResponse  = "%v - Received handshake response"
)

func TestPeerLog_NamesTheNodeAndTellsOnce(t *testing.T) {
	p, key := libraryPeer(t)
	var text bytes.Buffer
	l := newPeerLog(slog.New(slog.NewTextHandler(&text, nil)))
	l.setPeers([]Peer{{Key: key, Name: "phone"}})
	warnings := func(want int, when string) {
		t.Helper()
		if got := strings.Count(text.String(), "level=WARN"); got != want {
			t.Errorf("%s: %d warnings, want %d:\n%s", when, got, want, &text)
		}
	}
	unreachable := func(port int) error {
		return fmt.Errorf("write udp 0.0.0.0:%d: %w", port, syscall.ENETUNREACH)
	}
	for i := range 5 {
		l.errorf(failedToSend, p, unreachable(i))
	}
	warnings(1, "the same trouble")
	if !strings.Contains(text.String(), `peer=phone detail="Failed to send handshake initiation`) {
		t.Errorf("the log names no node: %s", &text)
	}
	l.errorf(failedToSend, p, errors.New("no known endpoint for peer"))
	warnings(2, "another trouble")
	l.debugf(gotResponse, p)
	l.errorf(failedToSend, p, errors.New("no known endpoint for peer"))
	warnings(3, "the same trouble after the peer was heard")
	l.setPeers([]Peer{{Key: key, Name: "phone"}})
	l.errorf(failedToSend, p, errors.New("no known endpoint for peer"))
	warnings(3, "the same trouble after a Set")
	l.setPeers(nil)
	if len(l.told) != 0 {
		t.Errorf("%d peers that are gone are remembered", len(l.told))
	}
	l.errorf(failedToSend, p, unreachable(1))
	warnings(4, "a peer that is not configured")
	if len(l.told) != 0 {
		t.Error("a peer that is not configured is remembered")
	}
}

func TestPeerLog_ByKeyWithoutAName(t *testing.T) {
	p, key := libraryPeer(t)
	var text bytes.Buffer
	l := newPeerLog(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug})))
	l.setPeers([]Peer{{Key: key}})
	l.debugf(gotResponse, p)
	if !strings.Contains(text.String(), key.String()) {
		t.Errorf("the log names no key: %s", &text)
	}
	l.debugf("Interface up requested")
	if !strings.Contains(text.String(), `detail="Interface up requested"`) {
		t.Errorf("a message about no peer: %s", &text)
	}
}

func TestPeerLog_IsLimited(t *testing.T) {
	var text bytes.Buffer
	l := newPeerLog(slog.New(slog.NewTextHandler(&text, nil)))
	for i := range 1000 {
		l.errorf("Failed to decode %d", i)
	}
	if got := strings.Count(text.String(), "\n"); got < logBurst || got > 2*logBurst {
		t.Errorf("%d of 1000 messages at once were logged, want about %d", got, logBurst)
	}
}
