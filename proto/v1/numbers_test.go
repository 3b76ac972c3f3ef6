// SPDX-License-Identifier: Apache-2.0

package v1_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/meshgate/meshgate/proto/meshgate/v1"
	_ "github.com/meshgate/meshgate/proto/v1"
)

var update = flag.Bool("update", false, "rewrite the table of our own numbers; that of the v1 API never changes")

const (
	// v1Table is the v1 API as it was published.
	v1Table = "wire-numbers.txt"
	// ownTable is everything that we added to it.
	ownTable = "own-numbers.txt"
	// firstOwnField is the number from which on fields are ours.
	firstOwnField = 100
)

// TestWireNumbers_AreThoseOfTheV1API compares all that clients and nodes of the
// v1 API see: files, messages, fields, enum values and rpcs, with their names,
// numbers, types and shapes.
func TestWireNumbers_AreThoseOfTheV1API(t *testing.T) {
	table := readTable(t, v1Table)
	got, _ := describe()
	if diff := cmp.Diff(table, got); diff != "" {
		t.Errorf("the v1 API has changed (-published +now):\n%s", diff)
	}
	totals := map[string]int{"file": 12, "service": 13, "rpc": 71, "field": 239, "value": 82}
	for kind, want := range totals {
		n := 0
		for _, line := range table {
			if strings.Fields(line)[1] == kind {
				n++
			}
		}
		if n != want {
			t.Errorf("the table has %d lines of kind %s, the v1 API has %d", n, kind, want)
		}
	}
}

// TestOwnNumbers_AreThoseOfTheTable does the same for our extensions, on which
// released clients rely as much.
func TestOwnNumbers_AreThoseOfTheTable(t *testing.T) {
	_, got := describe()
	if *update {
		text := strings.Join(got, "\n") + "\n"
		if err := os.WriteFile(filepath.Join("testdata", ownTable), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(readTable(t, ownTable), got); diff != "" {
		t.Errorf("the extensions have changed; if they were never released, run with -update (-table +now):\n%s", diff)
	}
}

// readTable returns the lines of a table.
func readTable(t *testing.T, name string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// describe writes a line for everything that our proto files declare: what the
// v1 API has, and what is our own.
func describe() (v1, own []string) {
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		d := describer{file: file.Path(), extension: file.Path() == "v1/extensions.proto" || file.Package() != "v1"}
		if file.Package() != "v1" && file.Package() != "meshgate.v1" {
			return true
		}
		d.line(d.extension, "file")
		d.enums(file.Enums())
		d.messages(file.Messages())
		d.services(file.Services())
		v1, own = append(v1, d.v1...), append(own, d.own...)
		return true
	})
	slices.Sort(v1)
	slices.Sort(own)
	return v1, own
}

// describer writes the lines of one file.
type describer struct {
	file string
	// extension is true when all of the file is our own.
	extension bool
	v1, own   []string
}

// line adds a line to one of the tables.
func (d *describer) line(own bool, format string, args ...any) {
	line := d.file + " " + fmt.Sprintf(format, args...)
	if own {
		d.own = append(d.own, line)
	} else {
		d.v1 = append(d.v1, line)
	}
}

// enums describes enums and their values.
func (d *describer) enums(enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		e := enums.Get(i)
		d.line(d.extension, "enum %s", e.FullName())
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			d.line(d.extension, "value %s %s = %d", e.FullName(), v.Name(), v.Number())
		}
	}
}

// messages describes messages and all within them.
func (d *describer) messages(messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		d.line(d.extension, "message %s", m.FullName())
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			d.line(d.extension || f.Number() >= firstOwnField || sketched(f), "field %s = %d %s", f.FullName(), f.Number(), typeOf(f))
		}
		d.enums(m.Enums())
		d.messages(m.Messages())
	}
}

// sketched reports whether f is one of the fields that the published v1 API
// proposes in comments, with these numbers, and does not have.
func sketched(f protoreflect.FieldDescriptor) bool {
	switch f.FullName() {
	case "v1.NetworkACL.protocols":
		return f.Number() == 8
	case "v1.NetworkACL.ports":
		return f.Number() == 9
	case "v1.NetworkAction.protocol":
		return f.Number() == 5
	case "v1.NetworkAction.port":
		return f.Number() == 6
	}
	return false
}

// typeOf returns a field's label, type and oneof.
func typeOf(f protoreflect.FieldDescriptor) string {
	label := "single"
	switch {
	case f.IsMap():
		label = "map"
	case f.IsList():
		label = "repeated"
	case f.HasOptionalKeyword():
		label = "optional"
	}
	name := f.Kind().String()
	switch {
	case f.Message() != nil:
		name = string(f.Message().FullName())
	case f.Enum() != nil:
		name = string(f.Enum().FullName())
	}
	if oneof := f.ContainingOneof(); oneof != nil {
		name += " oneof " + string(oneof.Name())
	}
	return label + " " + name
}

// services describes services and their rpcs.
func (d *describer) services(services protoreflect.ServiceDescriptors) {
	for i := range services.Len() {
		s := services.Get(i)
		d.line(d.extension, "service %s", s.FullName())
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			d.line(d.extension, "rpc %s %s %s %s", m.FullName(), shapeOf(m), m.Input().FullName(), m.Output().FullName())
		}
	}
}

// shapeOf says which sides of an rpc stream.
func shapeOf(m protoreflect.MethodDescriptor) string {
	switch {
	case m.IsStreamingClient() && m.IsStreamingServer():
		return "bidi-stream"
	case m.IsStreamingClient():
		return "client-stream"
	case m.IsStreamingServer():
		return "server-stream"
	default:
		return "unary"
	}
}
