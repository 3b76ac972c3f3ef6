// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// askEarly makes one request on a connection of its own.
func askEarly(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	alone := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	a := ask(t, alone, method, url, "{}", "Content-Type", "application/json")
	return a.StatusCode, a.text
}

// A gateway that waits for others answers probes, says why to operators only, and
// leaves its ports to the gateway that serves next.
func TestEarly_AnswersUntilTheGatewayServes(t *testing.T) {
	front := NewFront(t.Context(), listen(t), nil, ShareOf(0), nil)
	t.Cleanup(func() {
		if err := front.Close(); err != nil {
			t.Errorf("close the port: %v", err)
		}
	})
	operators := listen(t).(*net.TCPListener)
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "shown"}))
	early := &Early{
		Public: front.Loan(), Metrics: Loan(operators), Gatherer: registry,
		Reason: func() error { return errors.New("waits for gw2") },
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- early.Run(ctx) }()
	public, inside := "http://"+front.Listener().Addr().String(), "http://"+operators.Addr().String()
	for _, c := range []struct {
		method, url string
		status      int
		says, hides string
	}{
		{http.MethodGet, public + "/livez", http.StatusOK, "ok", ""},
		{http.MethodGet, public + "/readyz", http.StatusServiceUnavailable, "not ready", "gw2"},
		{http.MethodGet, public + "/", http.StatusServiceUnavailable, "try again", "gw2"},
		{http.MethodPost, public + "/v1.Node/GetStatus", http.StatusServiceUnavailable, `"code":"unavailable"`, "gw2"},
		{http.MethodGet, inside + "/livez", http.StatusOK, "ok", ""},
		{http.MethodGet, inside + "/readyz", http.StatusServiceUnavailable, "waits for gw2", ""},
		{http.MethodGet, inside + "/metrics", http.StatusOK, "shown 0", ""},
	} {
		status, body := askEarly(t, c.method, c.url)
		if status != c.status || !strings.Contains(body, c.says) || c.hides != "" && strings.Contains(body, c.hides) {
			t.Errorf("%s %s: %d %q, want %d that says %q and not %q", c.method, c.url, status, body, c.status, c.says, c.hides)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	serve(t, func(cfg *Config) { cfg.Public, cfg.Metrics = front.Listener(), operators })
	for _, url := range []string{public, inside} {
		if status, body := askEarly(t, http.MethodGet, url+"/readyz"); status != http.StatusOK {
			t.Errorf("%s after it: %d %q", url, status, body)
		}
	}
}

func TestEarly_NamesACertificateThatIsMissing(t *testing.T) {
	front := NewFront(t.Context(), listen(t), nil, ShareOf(0), nil)
	t.Cleanup(func() {
		if err := front.Close(); err != nil {
			t.Errorf("close the port: %v", err)
		}
	})
	early := &Early{
		Public: front.Loan(), TLS: &TLS{CertFile: "missing.pem", KeyFile: "missing.key"},
		Reason: func() error { return errors.New("waits") },
	}
	if err := early.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "missing.pem") {
		t.Errorf("ran with %v, want an error that names the file", err)
	}
}
