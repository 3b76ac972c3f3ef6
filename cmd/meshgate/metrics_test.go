// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/pair"
	"github.com/meshgate/meshgate/node/store/remote"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const metricsDoc = "../../docs/metrics.md"

const metricsHead = `# Metrics

A gateway serves these at ` + "`/metrics`" + ` of ` + "`--metrics.listen`" + `, beside those of Go and of the process. A node behind a gateway
serves those of its parts when ` + "`--metrics.listen`" + ` is set. Labels come from small closed sets: no metric names a
user, a node or an address. Sizes are in bytes, times in seconds. Those of ` + "`meshgate_pair_`" + ` are of nodes behind a gateway, and
those of ` + "`meshgate_remote_`" + ` of programs that read the state through gateways, with ` + "`node/store/remote`" + `.

| metric | meaning |
|---|---|
`

var description = regexp.MustCompile(`fqName: "(meshgate_[a-z_]+)", help: "([^"]*)"`)

// TestMetricsDoc_ListsEveryMetric keeps docs/metrics.md equal to what a running
// gateway registers, the pairs of a node, and a store that reads from one.
func TestMetricsDoc_ListsEveryMetric(t *testing.T) {
	found := map[string]string{}
	for _, text := range describe(t) {
		if m := description.FindStringSubmatch(text); m != nil {
			found[m[1]] = m[2]
		}
	}
	var b strings.Builder
	b.WriteString(metricsHead)
	for _, name := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, found[name])
	}
	if *update {
		if err := os.WriteFile(metricsDoc, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(metricsDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("docs/metrics.md is not what a gateway registers; run: go test ./cmd/meshgate -run MetricsDoc -update")
	}
}

// describe runs a gateway until it is ready and returns the descriptions of
// all its metrics.
func describe(t *testing.T) []string {
	t.Helper()
	p := openDev(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out []string
	s, err := remote.New(remote.Config{
		Gateways:   []remote.Gateway{{Name: "gw-1", Client: meshgatev1connect.NewStoreClient(http.DefaultClient, "http://localhost")}},
		Registerer: p.registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := pair.New(pair.Config{Registerer: p.registry}); err != nil {
		t.Fatal(err)
	}
	err = p.run(ctx, func() error {
		ch := make(chan *prometheus.Desc)
		go func() {
			defer close(ch)
			p.registry.Describe(ch)
		}()
		for d := range ch {
			out = append(out, d.String())
		}
		cancel()
		return nil
	})
	if err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	return out
}
