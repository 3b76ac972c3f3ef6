// SPDX-License-Identifier: Apache-2.0

package main

import (
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
