// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"reflect"
	"testing"

	"github.com/meshgate/meshgate/node/topology"
)

// There are more than a million links in a mesh of ten thousand public nodes. The
// collector is to pass over them, and they are to fit into memory.
func TestLink_IsSmallAndHoldsNoPointer(t *testing.T) {
	link := topology.LinkType()
	if size := link.Size(); size > 16 {
		t.Errorf("a link takes %d bytes, want at most 16", size)
	}
	for i := range link.NumField() {
		switch f := link.Field(i); f.Type.Kind() {
		case reflect.Int32, reflect.Uint64:
		default:
			t.Errorf("field %s is of kind %v, which may be a pointer", f.Name, f.Type.Kind())
		}
	}
}
