// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/sha256"
	"time"
)

// Token is a bearer token of the mesh: what gateways know of it.
type Token struct {
	// Hash is the SHA-256 of the token.
	Hash [sha256.Size]byte
	// Holder is the node or user whom it lets in.
	Holder string
	// CreatedAt is when it was made known to the mesh.
	CreatedAt time.Time
}
