// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// Set by the linker: see the Makefile.
var (
	version = "dev"
	commit  = "unknown"
	date    = "unknown"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print what this binary is",
		Args:  args(cobra.NoArgs, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if a.structured() {
				return a.print(map[string]string{
					"version": version, "commit": commit, "build_date": date, "go": runtime.Version(),
				})
			}
			_, err := fmt.Fprintf(a.stdout, "meshgate %s (commit %s, built %s, %s)\n", version, commit, date, runtime.Version())
			return err
		},
	}
}
