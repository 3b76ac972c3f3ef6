// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/mesh"
)

// keyFile holds the identity key inside a data directory, in the encoded form
// that v1 nodes use (one base64 line).
const keyFile = "node.key"

// LoadKey reads the identity key from dir and makes one at the first start.
// The directory and the file are readable by their owner only.
func LoadKey(dir string) (mesh.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return mesh.PrivateKey{}, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(dir, keyFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return mesh.PrivateKey{}, fmt.Errorf("read node key: %w", err)
	}
	key, err := mesh.ParsePrivateKey(strings.TrimSpace(string(raw)))
	if err != nil {
		return mesh.PrivateKey{}, fmt.Errorf("node key in %s is damaged; restore it from a backup, or remove it to become a new node: %w", path, err)
	}
	return key, nil
}

func makeKey(path string) (mesh.PrivateKey, error) {
	key, err := mesh.GenerateKey()
	if err != nil {
		return mesh.PrivateKey{}, fmt.Errorf("generate node key: %w", err)
	}
	if err := durable.WriteFile(path, []byte(key.Encode()+"\n")); err != nil {
		return mesh.PrivateKey{}, fmt.Errorf("write node key: %w", err)
	}
	return key, nil
}
