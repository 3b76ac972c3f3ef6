// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// ready is the line that a long-running command prints on standard output
// with --output json or yaml once it serves. Fields are only ever added.
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

// structured reports whether the output is for programs.
func (a *app) structured() bool { return a.output != "table" }

// print writes v in the form that --output asks for: one line of JSON, or a
// YAML document with the same fields in the same order.
func (a *app) print(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.printRaw(raw)
}

// printProto writes m likewise, in the API's own JSON form.
func (a *app) printProto(m proto.Message) error {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	return a.printRaw(raw)
}

// printList writes a list likewise: every command prints {"items": [...]}, also
// of none.
func (a *app) printList(items any) error {
	return a.print(struct {
		Items any `json:"items"`
	}{items})
}

// printProtos writes a list of messages like printList.
func (a *app) printProtos(list []proto.Message) error {
	items := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		raw, err := protojson.Marshal(m)
		if err != nil {
			return err
		}
		items = append(items, raw)
	}
	return a.printList(items)
}

func (a *app) printRaw(raw []byte) error {
	var out bytes.Buffer
	if a.output == "yaml" {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		document, err := yamlOf(d)
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		if err := errors.Join(e.Encode(document), e.Close()); err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
	} else {
		if err := json.Compact(&out, raw); err != nil {
			return err
		}
		out.WriteByte('\n')
	}
	_, err := a.stdout.Write(out.Bytes())
	return err
}

// yamlOf reads one JSON value, whose fields keep their order.
func yamlOf(d *json.Decoder) (*yaml.Node, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		if v == '{' {
			n = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		}
		for d.More() { // of a mapping, names and values in turn
			child, err := yamlOf(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		_, err := d.Token() // the end of it
		return n, err
	case string:
		n := &yaml.Node{}
		n.SetString(v)
		return n, nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: v.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(v)}, nil
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
	}
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
