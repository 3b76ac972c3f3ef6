// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// maxAnonymous is how many requests of one network are served at a time that have
// shown no credentials, and maxAnonymousAll how many of all. Each takes some 20 KiB
// while it waits for its client, and a connection carries many. A page is a dozen
// of them, and a school is behind one address.
const maxAnonymous, maxAnonymousAll = 1024, 4096

// errDisplaced ends a request that made room.
var errDisplaced = fmt.Errorf("%w: too many requests without credentials are open; try again in a second", mesh.ErrExhausted)

// anonymous bounds the requests that have shown no credentials yet. One too many
// takes the place of that which has waited longest: honest ones are quick.
func (g *Gateway) anonymous(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := requestFrom(r.Context())
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		from := network(q.from.Addr())
		place, leave, _ := g.nameless.enter(context.Background(), from)
		stop := context.AfterFunc(place, func() {
			g.metrics.nameless.Inc()
			g.flood.closed(limitRequests, from)
			cancel(errDisplaced)
			// Whoever waits for the client waits no longer.
			q.deadlines.read(time.Unix(1, 0))
			q.deadlines.write(time.Unix(1, 0))
		})
		q.named = func() {
			stop()
			leave()
		}
		defer q.named()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
