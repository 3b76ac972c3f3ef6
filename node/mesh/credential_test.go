// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

const credentialMesh = "fd9f:86d0:8188::/32"

func TestCredential_ShowsTheHolderOfTheKeyToOneGateway(t *testing.T) {
	key, at := vectorKey(t), time.Unix(1_700_000_000, 999)
	token := mesh.SignCredential(key, credentialMesh, "nas", "gw1", at)
	if !mesh.IsCredential(token) || mesh.IsCredential("x"+token) {
		t.Errorf("%q does not say what it is", token)
	}
	c, err := mesh.ParseCredential(token)
	if err != nil || c.Node != "nas" || c.Gateway != "gw1" || c.Mesh != credentialMesh || c.Key != key.Public() || c.At.Unix() != at.Unix() {
		t.Fatalf("read %+v, %v", c, err)
	}
	for name, tt := range map[string]struct {
		mesh    string
		gateway mesh.NodeID
		now     time.Time
		says    string // empty: it is good
	}{
		"at once":          {credentialMesh, "gw1", at, ""},
		"within its time":  {credentialMesh, "gw1", at.Add(mesh.ProofWindow - time.Second), ""},
		"a slow clock":     {credentialMesh, "gw1", at.Add(-mesh.ProofWindow + time.Second), ""},
		"too late":         {credentialMesh, "gw1", at.Add(mesh.ProofWindow + 2*time.Second), "old"},
		"from the future":  {credentialMesh, "gw1", at.Add(-mesh.ProofWindow - 2*time.Second), "old"},
		"another mesh":     {"fd00::/32", "gw1", at, "another mesh"},
		"another gateway":  {credentialMesh, "gw2", at, `"gw1"`},
		"no mesh":          {"", "gw1", at, "another mesh"},
		"a gateway's self": {credentialMesh, "", at, `"gw1"`},
	} {
		err := c.Check(tt.mesh, tt.gateway, tt.now)
		if (err == nil) != (tt.says == "") || err != nil && (!errors.Is(err, mesh.ErrDenied) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCredential_OfAnotherKeyIsNone(t *testing.T) {
	mine, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	prefix, body, signature := split(t, mesh.SignCredential(mine, credentialMesh, "nas", "gw1", at))
	for name, change := range map[string][2]string{
		"key":     {mine.Public().Encode(), vectorKey(t).Public().Encode()},
		"node":    {"\nnas\n", "\nsan\n"},
		"gateway": {"\ngw1\n", "\ngw2\n"},
		"time":    {"1700000000", "1700000001"},
	} {
		forged := strings.Replace(body, change[0], change[1], 1)
		if forged == body {
			t.Fatalf("%s is not in %q", name, body)
		}
		c, err := mesh.ParseCredential(prefix + base64.RawURLEncoding.EncodeToString([]byte(forged)) + "." + signature)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(credentialMesh, c.Gateway, c.At); !errors.Is(err, mesh.ErrDenied) {
			t.Errorf("with another %s: %v", name, err)
		}
	}
}

// split takes a token apart: prefix, fields, signature.
func split(t *testing.T, token string) (prefix, body, signature string) {
	t.Helper()
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || len(parts) != 3 {
		t.Fatalf("token %q: %v", token, err)
	}
	return parts[0] + ".", string(raw), parts[2]
}

func TestParseCredential_BadTokens(t *testing.T) {
	good := mesh.SignCredential(vectorKey(t), credentialMesh, "nas", "gw1", time.Unix(1_700_000_000, 0))
	prefix, body, signature := split(t, good)
	with := func(body string) string {
		return prefix + base64.RawURLEncoding.EncodeToString([]byte(body)) + "." + signature
	}
	for name, token := range map[string]string{
		"empty":          "",
		"another kind":   "abcdefghijklmnopqrstuvwxyz",
		"no signature":   strings.TrimSuffix(good, "."+signature),
		"short":          good[:len(good)-2],
		"long":           good + strings.Repeat("A", 4096),
		"no base64":      prefix + "!" + "." + signature,
		"a field less":   with(strings.TrimPrefix(body, credentialMesh+"\n")),
		"a field more":   with(body + "\n1"),
		"no id":          with(strings.Replace(body, "nas", "n/s", 1)),
		"no gateway":     with(strings.Replace(body, "gw1", "", 1)),
		"no key":         with(strings.Replace(body, "CAUS", "!!!!", 1)),
		"no time":        with(strings.Replace(body, "1700000000", "soon", 1)),
		"time with zero": with(strings.Replace(body, "1700000000", "01700000000", 1)),
	} {
		if _, err := mesh.ParseCredential(token); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever somebody sends is read or refused, and shows nothing but what a key
// has signed.
func FuzzCredential(f *testing.F) {
	f.Add("meshgate-key.YQ.YQ")
	f.Add(mesh.SignCredential(vectorKey(f), credentialMesh, "nas", "gw1", time.Unix(1_700_000_000, 0)))
	f.Fuzz(func(t *testing.T, token string) {
		c, err := mesh.ParseCredential(token)
		if err != nil {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Errorf("%q: %v", token, err)
			}
			return
		}
		if c.Check(c.Mesh, c.Gateway, c.At) == nil && c.Key != vectorKey(t).Public() {
			t.Errorf("%q shows %+v", token, c)
		}
	})
}
