// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"io"
	"testing"

	"github.com/meshgate/meshgate/signaling/bridge"
)

func TestInBand_EchoAndHalfClose(t *testing.T) {
	w := &world{}
	s := newService(t, w, self)
	c := dial(t, s, self)
	conn, err := c.DialContext(context.Background(), "tcp", listen(t, echo))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*bridge.Stream).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
}
