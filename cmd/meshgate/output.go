// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
)

// ready is the line that a long-running command prints on standard output
// with --output json once it serves. Fields are only ever added.
type ready struct {
	Event    string         `json:"event"`
	URL      string         `json:"url,omitempty"`
	Token    string         `json:"token,omitempty"`
	Metrics  string         `json:"metrics,omitempty"`
	TURN     string         `json:"turn,omitempty"`
	Nodes    []readyNode    `json:"nodes,omitempty"`
	Services []readyService `json:"services,omitempty"`
}

type readyNode struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

type readyService struct {
	Node string `json:"node"`
	Kind string `json:"kind"`
	Host string `json:"host"`
	Port uint16 `json:"port"`
}

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", raw)
	return err
}

// table writes rows in aligned columns, the first row being the heading.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
