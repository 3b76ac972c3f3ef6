// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"connectrpc.com/connect"
)

// The stock client of the protocol, from npm, makes every kind of call.
func TestStockGRPCWebClient(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("the stock client runs in Node, which is not installed")
	}
	if _, err := os.Stat("../node_modules/@improbable-eng/grpc-web"); err != nil {
		t.Fatal("the stock client is not there; make web installs it")
	}
	s := serve(t, nil)
	cmd := exec.CommandContext(testContext(t), node, "--experimental-websocket", "testdata/grpcweb.mjs", "http://"+s.public, tokenOf("admin"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var results map[string]struct {
		Code int
		Text string
		Got  []map[string]string
	}
	if err := json.Unmarshal(raw, &results); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	for name, want := range map[string]struct {
		code connect.Code
		got  int
		key  string
		text string // of key in the last message
	}{
		"httpUnary":      {0, 1, "id", "web-1"},
		"httpStream":     {0, 1, "gateway", "gw-1"},
		"httpRefused":    {connect.CodeUnauthenticated, 0, "", ""},
		"socketUnary":    {0, 1, "id", "web-1"},
		"socketStream":   {0, 1, "gateway", "gw-1"},
		"socketBidi":     {0, 3, "candidate", "c"},
		"socketNotFound": {connect.CodeNotFound, 0, "", ""},
		"socketRefused":  {connect.CodeUnauthenticated, 0, "", ""},
		"socketDenied":   {connect.CodeInternal, 0, "", ""},
	} {
		r, ok := results[name]
		if !ok || connect.Code(r.Code) != want.code || len(r.Got) != want.got {
			t.Errorf("%s: %+v", name, r)
			continue
		}
		if want.got > 0 && r.Got[want.got-1][want.key] != want.text {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if offer := results["socketBidi"].Got; len(offer) > 0 && offer[0]["offer"] != "offer for admin" {
		t.Errorf("the first answer is %v", offer[0])
	}
}
