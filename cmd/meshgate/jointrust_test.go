// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
)

// stranger is a server with a certificate that nobody knows.
func stranger(t *testing.T) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// A node that joins at somebody it does not believe ends, and says what to give.
func TestJoin_WhoIsNotBelievedIsAskedOnce(t *testing.T) {
	url := stranger(t)
	for name, tt := range map[string]struct {
		flags []string
		code  int
		want  string
	}{
		"no pin":         {nil, exitFailed, "--pin sha256:..."},
		"a wrong pin":    {[]string{"--pin", strings.Repeat("ab", 32)}, exitFailed, "Compare --pin with"},
		"a pin of zeros": {[]string{"--pin", "sha256:" + strings.Repeat("0", 64)}, exitUsage, "pin of zeros"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var stdout, stderr bytes.Buffer
		args := append([]string{"join", url, "--token", "x", "--id", "nas", "--data-dir", t.TempDir(), "--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0"}, tt.flags...)
		if code := run(ctx, args, &stdout, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) || strings.Contains(stderr.String(), "trying again") {
			t.Errorf("%s: exit code %d, %s", name, code, &stderr)
		}
		cancel()
	}
}

// A gateway that joins a cluster names its own flags.
func TestInsist_WhoIsNotBelievedIsAskedOnce(t *testing.T) {
	l := &cluster{log: slog.New(slog.DiscardHandler)}
	at := &access{URL: stranger(t), prefix: "cluster."}
	public, err := at.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer public.Close()
	asked := 0
	err = l.insist(t.Context(), at, "join", func(ctx context.Context) error {
		asked++
		_, err := public.Member().Adopt(ctx, "gw2")
		return err
	})
	if text := explain(err); asked != 1 || !strings.Contains(text, "--cluster.join "+at.URL) || !strings.Contains(text, "--cluster.pin sha256:...") || strings.Contains(text, "--pin") {
		t.Errorf("asked %d times: %s", asked, text)
	}
	at.Pin = "sha256:" + strings.Repeat("0", 64)
	if _, err := at.connect(t.Context()); err == nil || !strings.Contains(err.Error(), "--cluster.pin: nobody") {
		t.Errorf("a pin of zeros: %v", err)
	}
	err = at.advise(connect.NewError(connect.CodeUnauthenticated, errors.New("no credentials")))
	if text := explain(err); !strings.HasSuffix(text, "Give --cluster.token-file") {
		t.Errorf("without a token: %s", text)
	}
}

// One that is out of reach is asked more and more seldom, and the log says where.
func TestInsist_BacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l := &cluster{log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithTimeout(t.Context(), joinPatience)
		defer cancel()
		asked := 0
		err := l.insist(ctx, &access{URL: "https://gw1:8443", prefix: "cluster."}, "join", func(context.Context) error {
			asked++
			return connect.NewError(connect.CodeUnavailable, errors.New("connection refused"))
		})
		if err == nil || errors.Is(err, mesh.ErrPrecondition) || asked < 10 || asked > 35 {
			t.Errorf("asked %d times in %s: %v", asked, joinPatience, err)
		}
		if n := strings.Count(log.String(), "\n"); n != 4 { // at once, and 15, 30 and 60 seconds later
			t.Errorf("it is told %d times:\n%s", n, log.String())
		}
		line, _, _ := strings.Cut(log.String(), "\n")
		if !strings.Contains(line, "gateway=https://gw1:8443") || !strings.Contains(line, "Is the gateway running") {
			t.Error(line)
		}
	})
}
