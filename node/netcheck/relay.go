// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/client"
)

// relays tries the TURN server of a gateway over each of its transports.
func relays(ctx context.Context, log *slog.Logger, t Target) []Relay {
	if t.Username == "" {
		return []Relay{}
	}
	list := make([]Relay, len(t.TURN))
	var wg sync.WaitGroup
	for i, uri := range t.TURN {
		wg.Go(func() { list[i] = relay(ctx, log, t, uri) })
	}
	wg.Wait()
	return list
}

// relay gets an allocation, and gives it back.
func relay(ctx context.Context, log *slog.Logger, t Target, uri string) Relay {
	r := Relay{URI: uri, Transport: transportOf(uri)}
	ctx, cancel := context.WithTimeout(ctx, relayTime)
	defer cancel()
	began := time.Now()
	a, err := client.Allocate(ctx, client.Config{Server: uri, Username: t.Username, Password: t.Password, TLS: t.TLS, Logger: log})
	if err != nil {
		r.Error = err.Error()
		if ctx.Err() != nil {
			r.Error = "no answer within " + relayTime.String()
		}
		return r
	}
	r.Took, r.Relayed = milliseconds(time.Since(began)), a.Relayed()
	_ = a.Close() // the server forgets it in a while anyway
	return r
}

// transportOf is how a URI says that its server is reached.
func transportOf(uri string) string {
	switch {
	case strings.HasPrefix(uri, "turns:"):
		return "TLS"
	case strings.HasSuffix(uri, "?transport=tcp"):
		return "TCP"
	default:
		return "UDP"
	}
}
