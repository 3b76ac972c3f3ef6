// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// credentialPrefix begins a token that is a KeyCredential.
	credentialPrefix = "meshgate-key."
	// credentialDomain begins every message that is signed as a credential, so
	// that a signature for anything else is none.
	credentialDomain = "meshgate.v1 key credential\x00"
	// maxCredentialLen bounds the token, in bytes.
	maxCredentialLen = 2048
)

// KeyCredential shows to one gateway that its holder has the key of a node: a
// token that the node makes itself and that is good for ProofWindow.
type KeyCredential struct {
	// Mesh is the mesh that is meant: its IPv6 network.
	Mesh string
	// Node is who shows it, and Gateway to whom.
	Node, Gateway NodeID
	// Key is the key of Node, as it says.
	Key PublicKey
	// At is when it was made, in whole seconds.
	At time.Time

	signature []byte
}

// SignCredential makes the token that shows to a gateway that the holder of key
// is node, from at on.
func SignCredential(key PrivateKey, mesh string, node, gateway NodeID, at time.Time) string {
	c := KeyCredential{Mesh: mesh, Node: node, Gateway: gateway, Key: key.Public(), At: at.Truncate(time.Second)}
	body := base64.RawURLEncoding.EncodeToString([]byte(strings.Join(c.fields(), "\n")))
	return credentialPrefix + body + "." + base64.RawURLEncoding.EncodeToString(key.Sign(c.message()))
}

// IsCredential reports whether a token says that it is a KeyCredential.
func IsCredential(token string) bool { return strings.HasPrefix(token, credentialPrefix) }

// ParseCredential reads a token that SignCredential made. It does not check the
// signature. The error wraps ErrInvalid.
func ParseCredential(token string) (KeyCredential, error) {
	var c KeyCredential
	rest, ok := strings.CutPrefix(token, credentialPrefix)
	body, signature, found := strings.Cut(rest, ".")
	if !ok || !found || len(token) > maxCredentialLen {
		return c, fmt.Errorf("%w: the token is no credential of a node", ErrInvalid)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return c, fmt.Errorf("%w: credential: %w", ErrInvalid, err)
	}
	if c.signature, err = base64.RawURLEncoding.Strict().DecodeString(signature); err != nil || len(c.signature) != ed25519.SignatureSize {
		return c, fmt.Errorf("%w: credential: its signature has not %d bytes", ErrInvalid, ed25519.SignatureSize)
	}
	fields := strings.Split(string(raw), "\n")
	if len(fields) != len(c.fields()) {
		return c, fmt.Errorf("%w: credential: it has %d fields where %d were expected", ErrInvalid, len(fields), len(c.fields()))
	}
	c.Mesh = fields[0]
	if c.Node, err = ParseNodeID(fields[1]); err != nil {
		return c, fmt.Errorf("credential: node: %w", err)
	}
	if c.Gateway, err = ParseNodeID(fields[2]); err != nil {
		return c, fmt.Errorf("credential: gateway: %w", err)
	}
	if c.Key, err = ParsePublicKey(fields[3]); err != nil {
		return c, fmt.Errorf("credential: key: %w", err)
	}
	at, err := strconv.ParseInt(fields[4], 10, 64)
	if err != nil || strconv.FormatInt(at, 10) != fields[4] {
		return c, fmt.Errorf("%w: credential: %q is no time", ErrInvalid, fields[4])
	}
	c.At = time.Unix(at, 0).UTC()
	return c, nil
}

// Check says why the credential does not show to gateway, at now, that its
// holder has Key and is of mesh. The error wraps ErrDenied. That the node has
// this key is for the caller to look up.
func (c *KeyCredential) Check(mesh string, gateway NodeID, now time.Time) error {
	switch age := now.Sub(c.At); {
	case c.Mesh != mesh:
		return fmt.Errorf("%w: the credential is for another mesh", ErrDenied)
	case c.Gateway != gateway:
		return fmt.Errorf("%w: the credential is for gateway %q, this is %q", ErrDenied, c.Gateway, gateway)
	case !c.Key.Verify(c.message(), c.signature):
		return fmt.Errorf("%w: the credential is not signed by its key", ErrDenied)
	case age < -ProofWindow || age > ProofWindow:
		return fmt.Errorf("%w: the credential is %v old, the most is %v: is the clock of the node right?", ErrDenied, age.Truncate(time.Second), ProofWindow)
	}
	return nil
}

// fields are what the token carries, and what is signed.
func (c *KeyCredential) fields() []string {
	return []string{c.Mesh, string(c.Node), string(c.Gateway), c.Key.Encode(), strconv.FormatInt(c.At.Unix(), 10)}
}

// message is what is signed.
func (c *KeyCredential) message() []byte {
	m := []byte(credentialDomain)
	for _, f := range c.fields() {
		m = binary.BigEndian.AppendUint32(m, uint32(len(f)))
		m = append(m, f...)
	}
	return m
}
