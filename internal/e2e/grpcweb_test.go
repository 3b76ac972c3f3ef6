// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"testing"
)

// webAnswer is what testdata/grpcweb.cjs says of one call.
type webAnswer struct {
	Code, Message, Offer string
	Candidates           int
	Answer               struct{ ID, Version string }
}

// Pages that exist bring this client along. Its WebSocket transport is the one
// way by which it streams in both directions.
func TestGRPCWeb_StockClientOverItsWebSocket(t *testing.T) {
	demo := start(t, "demo", "--listen", "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--no-warnings", "--experimental-websocket", "testdata/grpcweb.cjs",
		demo.ready.URL, demo.ready.Token, "firewalled")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var got struct{ Own, Other, Stranger, Offer, BadAnswer, Nobody webAnswer }
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Own.Code != "OK" || got.Own.Answer.ID != "gateway" || got.Own.Answer.Version == "" {
		t.Errorf("own status: %+v", got.Own)
	}
	if got.Other.Code != "OK" || got.Other.Answer.ID != "firewalled" {
		t.Errorf("status of another node: %+v", got.Other)
	}
	if got.Stranger.Code != "Unauthenticated" {
		t.Errorf("without a token: %+v", got.Stranger)
	}
	if got.Offer.Offer != "offer" {
		t.Errorf("offer: %+v", got.Offer)
	}
	if got.BadAnswer.Offer != "offer" || got.BadAnswer.Code != "InvalidArgument" {
		t.Errorf("an answer that is none: %+v", got.BadAnswer)
	}
	if got.Nobody.Code != "NotFound" || got.Nobody.Message == "" {
		t.Errorf("offer of an unknown node: %+v", got.Nobody)
	}
}
