// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestDeploy_ExampleConfigurationIsValid keeps the shipped file usable.
func TestDeploy_ExampleConfigurationIsValid(t *testing.T) {
	c := &upConfig{}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	if err := f.Set("config", "../../deploy/config.example.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := c.load(f); err != nil {
		t.Fatal(err)
	}
	if c.listen != ":443" || c.turnPorts != "49152-65535" || c.wgPort != 51820 || c.policy != "accept" {
		t.Errorf("the file was not read: %+v", c)
	}
}

// The block for several gateways, which is a comment in the shipped file, is
// valid where somebody makes it none.
func TestDeploy_ClusterBlockIsValid(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(raw), "# cluster:\n")
	block, _, ended := strings.Cut(block, "\n\n")
	if !found || !ended {
		t.Fatal("the file has no cluster block")
	}
	text := "public-address: 203.0.113.7\ncluster:\n" + strings.ReplaceAll("\n"+block, "\n# ", "\n") + "\n"
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &upConfig{}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	if err := f.Set("config", path); err != nil {
		t.Fatal(err)
	}
	if err := c.load(f); err != nil {
		t.Fatal(err)
	}
	l := c.cluster
	if l.address == "" || l.gateway.URL == "" || l.gateway.tokenFile == "" || l.gateway.Pin == "" {
		t.Errorf("the block was not read: %+v", l)
	}
	c.dataDir = "/d"
	if err := c.validateCluster(); err != nil {
		t.Error(err)
	}
}

// Who reads only how to run a gateway learns how to back it up.
func TestDeploy_ReadmeTellsOfBackups(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"meshgate backup", "meshgate restore", "node.key", "docs/operations.md"} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("deploy/README.md does not tell of %s", want)
		}
	}
}
