// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// While a gateway waits for its relays it asks systemd to wait, too, again and again,
// and no longer.
func TestAskForTime(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	var log bytes.Buffer
	stop := askForTime(t.Context(), socket, time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	buf := make([]byte, 100)
	for range 3 {
		systemd.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := systemd.Read(buf)
		if err != nil || string(buf[:n]) != "EXTEND_TIMEOUT_USEC=40000000" {
			t.Fatalf("systemd got %q, %v", buf[:n], err)
		}
	}
	stop()
	if log.Len() > 0 {
		t.Errorf("the log says %s", log.String())
	}
	if stopAskFor < stopAskEach+stopCalls {
		t.Errorf("asked each %s for %s", stopAskEach, stopAskFor)
	}
	askForTime(t.Context(), "", time.Hour, nil)()
	synctest.Test(t, func(t *testing.T) {
		stop := askForTime(t.Context(), socket+"-of-nobody", stopAskEach, slog.New(slog.NewTextHandler(&log, nil)))
		time.Sleep(5 * stopAskEach) // the bubble's clock
		if stop(); strings.Count(log.String(), "TimeoutStopSec") != 1 {
			t.Errorf("without systemd the log says %q, want it once", log.String())
		}
	})
}

// Who waits for relays longer than systemd is known to is warned at the start, unless
// systemd may be asked.
func TestTellStopTime(t *testing.T) {
	for _, test := range []struct {
		service, socket string
		drain           time.Duration
		warns           bool
	}{
		{"", "", time.Hour, false},
		{"id", "", time.Hour, true},
		{"id", "", 21 * time.Second, true},
		{"id", "", 20 * time.Second, false},
		{"id", "", 0, false},
		{"id", "/run/systemd/notify", time.Hour, false},
	} {
		t.Setenv(systemdService, test.service)
		t.Setenv(systemdSocket, test.socket)
		var log bytes.Buffer
		(&upConfig{turnDrainFor: test.drain}).tellStopTime(slog.New(slog.NewTextHandler(&log, nil)))
		if warned := strings.Contains(log.String(), "level=WARN"); warned != test.warns {
			t.Errorf("%+v: the log says %q", test, log.String())
		}
	}
}

// The unit lets the gateway ask, and leaves it time for calls.
func TestDeploy_UnitLeavesTimeToEnd(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/systemd/meshgate.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := string(raw)
	_, value, _ := strings.Cut(unit, "\nTimeoutStopSec=")
	value, _, _ = strings.Cut(value, "\n")
	if d, err := time.ParseDuration(value); err != nil || d != stopKnown || d < 2*stopCalls {
		t.Errorf("TimeoutStopSec=%s (%v), want %s", value, err, stopKnown)
	}
	if !strings.Contains(unit, "\nNotifyAccess=main\n") {
		t.Error("systemd does not listen to the gateway")
	}
}
