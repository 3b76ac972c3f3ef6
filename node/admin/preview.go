// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"

	"github.com/meshgate/meshgate/node/mesh"
)

// Preview reports whether a mesh as s would take changes, one after another, each
// upon those before it; s stays as it is. The error is that of the first that
// Change would refuse, and names it.
//
// It knows what s has: where s lacks the networks of the mesh, or addresses of
// nodes and replicas, routes that touch them pass here and not there.
func Preview(s *mesh.Snapshot, changes []mesh.Change) error {
	d := newDraft(s)
	for _, c := range changes {
		err := check(&d.Snapshot, c)
		if err == nil && c.Route != nil && !c.Delete {
			err = checkOutside(&d.Snapshot, c.Route, nil)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		d.apply(c)
	}
	return nil
}
