// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// What one caller publishes is bounded in bytes per second; nobody else is held
// up by it, nor are small values.
func TestPublish_IsBoundedPerCaller(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		publish := func(who string, bytes int) error {
			_, err := v1connect.NewStorageQueryServiceClient(bearer(p.client(t, true), who), "http://gate.test").
				Publish(t.Context(), connect.NewRequest(&v1.PublishRequest{Key: "app", Value: strings.Repeat("x", bytes)}))
			return err
		}
		const large = 500 << 10
		done := 0
		var err error
		for done < 2*publishBurst/large {
			if err = publish("admin", large); err != nil {
				break
			}
			done++
		}
		if done != publishBurst/(large+len("app")) {
			t.Errorf("%d values of %d bytes at once", done, large)
		}
		wantCode(t, err, connect.CodeResourceExhausted, fmt.Sprintf("%q publishes more than %d bytes per second", "admin", publishRate))
		wantCode(t, publish("viewer", 1), connect.CodePermissionDenied, "") // and not that there was too much
		pass(time.Second)
		if err := publish("admin", large); err != nil {
			t.Errorf("a second later: %v", err)
		}
		if n := s.node.writes(); n != done+1 {
			t.Errorf("%d were written, want %d", n, done+1)
		}
		pass(publishBurst / publishRate * time.Second)
		for range 1000 {
			if err := publish("admin", 100); err != nil {
				t.Fatalf("small values: %v", err)
			}
		}
	})
}
