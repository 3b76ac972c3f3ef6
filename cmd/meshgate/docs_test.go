// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/config.md anew")

const configDoc = "../../docs/config.md"

// TestConfigDoc_ListsEveryFlag keeps docs/config.md equal to the flags.
func TestConfigDoc_ListsEveryFlag(t *testing.T) {
	want := configText(newRoot(io.Discard, io.Discard))
	if *update {
		if err := os.WriteFile(configDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(configDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/config.md is not what the flags say; run: go test ./cmd/meshgate -run ConfigDoc -update")
	}
}

const configHead = `# Configuration

Every setting is a flag, an environment variable and a key of the YAML file that ` + "`--config`" + ` names. Where several
speak, the flag wins over the variable, the variable over the file, the file over the default. A key that no flag
has is an error. The variable of ` + "`--turn.listen`" + ` is ` + "`MESHGATE_TURN_LISTEN`" + `; its key is

` + "```yaml\nturn:\n  listen: \":3478\"\n```" + `

Secrets are given as files (` + "`--token-file`, `--turn.secret-file`" + `): command lines and environments are seen by others.

Commands that call a gateway need ` + "`--server`" + ` and a token, or run on the gateway's own host, where they find both in
its data directory.
`

func configText(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(configHead)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.LocalFlags().HasFlags() && c.Runnable() && c != root {
			fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n| flag | default | meaning |\n|---|---|---|\n", c.CommandPath(), c.Short)
			c.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Name == "help" || f.Name == "output" || f.Hidden {
					return
				}
				def := f.DefValue
				if def != "" && def != "[]" && def != "false" {
					def = "`" + def + "`"
				} else {
					def = ""
				}
				fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", f.Name, def, strings.ReplaceAll(f.Usage, "|", `\|`))
			})
		}
		for _, sub := range c.Commands() {
			if sub.Name() != "completion" && sub.Name() != "help" {
				walk(sub)
			}
		}
	}
	walk(root)
	return b.String()
}
