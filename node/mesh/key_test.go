// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
)

// The vector: seed 00 01 02 ... 1f.
const (
	vectorEd25519   = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
	vectorPublic    = "CAUSIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"
	vectorPrivate   = "CAUSQAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
	vectorWGPrivate = "OJTupJxYCu+BaTV2K+BJVZ1tFEDe3hLmoSXxhB//jm8="
	vectorWGPublic  = "RwHQhIhFH1RaQJ+1iuPlhYHKQKw/fxFGmM1x3qxzygE="
	vectorPrefix    = "fd9f:86d0:8188::/32"
	vectorIPv6      = "fd9f:86d0:8188:ff73:2ac4:40f5:1a35:0/112"
)

func vectorKey(t testing.TB) mesh.PrivateKey {
	t.Helper()
	key, err := mesh.ParsePrivateKey(vectorPrivate)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeys_MatchTheVectorOfV1Nodes(t *testing.T) {
	key := vectorKey(t)
	public := key.Public()
	for name, pair := range map[string][2]string{
		"ed25519 public":    {hex.EncodeToString(public[:]), vectorEd25519},
		"public key":        {public.Encode(), vectorPublic},
		"private key":       {key.Encode(), vectorPrivate},
		"wireguard private": {key.WireGuard().Base64(), vectorWGPrivate},
		"wireguard public":  {public.WireGuard().String(), vectorWGPublic},
		"from private":      {key.WireGuard().Public().String(), vectorWGPublic},
		"ipv6":              {mesh.NodeIPv6(netip.MustParsePrefix(vectorPrefix), public.WireGuard()).String(), vectorIPv6},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s = %s, want %s", name, pair[0], pair[1])
		}
	}
	parsed, err := mesh.ParsePublicKey(vectorPublic)
	if err != nil || parsed != public {
		t.Errorf("ParsePublicKey = %v, %v, want %v", parsed, err, public)
	}
}

// encodePublic gives raw the public key header.
func encodePublic(raw []byte) string {
	return base64.StdEncoding.EncodeToString(append([]byte{8, 5, 0x12, 0x20}, raw...))
}

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestParsePublicKey_RefusesWhatIsNoKey(t *testing.T) {
	valid := mustHex(t, vectorEd25519)
	cases := map[string]string{
		"empty":                  "",
		"too short":              vectorPublic[:44],
		"too long":               vectorPublic + "AAAA",
		"bare wireguard key":     vectorWGPublic,
		"private key":            vectorPrivate,
		"newline inside":         vectorPublic[:20] + "\n" + vectorPublic[21:],
		"url alphabet":           strings.ReplaceAll(vectorPublic, "/", "_"),
		"plain ed25519 type":     base64.StdEncoding.EncodeToString(append([]byte{8, 1, 0x12, 0x20}, valid...)),
		"wrong length field":     base64.StdEncoding.EncodeToString(append([]byte{8, 5, 0x12, 0x21}, valid...)),
		"not a point":            encodePublic(append([]byte{2}, make([]byte, 31)...)),
		"identity":               encodePublic(append([]byte{1}, make([]byte, 31)...)),
		"order 2 (y = -1)":       encodePublic(mustHex(t, "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")),
		"order 4 (y = 0)":        encodePublic(make([]byte, 32)),
		"order 8":                encodePublic(mustHex(t, "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")),
		"order 8, negative":      encodePublic(mustHex(t, "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")),
		"identity plus p":        encodePublic(mustHex(t, "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")),
		"y above p":              encodePublic(bytes.Repeat([]byte{0xff}, 32)),
		"y = 3 + p, a point's y": encodePublic(mustHex(t, "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")),
	}
	for name, encoded := range cases {
		t.Run(name, func(t *testing.T) {
			key, err := mesh.ParsePublicKey(encoded)
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Fatalf("ParsePublicKey = %v, %v, want ErrInvalid", key, err)
			}
			if !key.IsZero() {
				t.Errorf("a key came with the error: %v", key)
			}
		})
	}
}

func TestParsePrivateKey_RefusesWhatIsNoKey(t *testing.T) {
	cases := map[string]string{
		"empty":               "",
		"public key":          vectorPublic,
		"wireguard key":       vectorWGPrivate,
		"other public half":   vectorPrivate[:88] + "MbA=",
		"wrong type":          "CAES" + vectorPrivate[4:],
		"bits after the last": vectorPrivate[:90] + "h=",
	}
	for name, encoded := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := mesh.ParsePrivateKey(encoded)
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Fatalf("error %v, want ErrInvalid", err)
			}
			if len(encoded) > 8 && strings.Contains(err.Error(), encoded[8:]) {
				t.Errorf("the error gives the key away: %v", err)
			}
		})
	}
}

func TestPrivateKeys_NeverPrintThemselves(t *testing.T) {
	key := vectorKey(t)
	wg := key.WireGuard()
	type holder struct {
		Key mesh.PrivateKey
		WG  mesh.WireGuardPrivateKey
		Ptr *mesh.WireGuardPrivateKey
	}
	h := holder{key, wg, &wg}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", key, wg, h)
	}
	out.WriteString(key.String() + key.GoString() + wg.String() + wg.GoString())
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("keys", "key", key, "wg", wg, "holder", h, "ptr", &h)
	}
	if err := json.NewEncoder(&out).Encode(h); err != nil {
		t.Fatal(err)
	}
	printed := strings.ToLower(out.String())
	seed := []byte{0, 1, 2, 3, 4, 5, 6, 7}
	for _, secret := range []string{
		vectorPrivate, vectorWGPrivate,
		hex.EncodeToString(seed), hex.EncodeToString(wg[:8]),
		"0 1 2 3 4 5", "0,1,2,3,4,5", "56 148 238", "56,148,238", "0x38, 0x94", "70 224 356",
	} {
		if strings.Contains(printed, strings.ToLower(secret)) {
			t.Errorf("output holds %q:\n%s", secret, printed)
		}
	}
}

func TestGenerateKey_MakesUsableKeys(t *testing.T) {
	a, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if a == b || a.IsZero() {
		t.Fatal("two generated keys are equal or zero")
	}
	msg := []byte("join")
	if !a.Public().Verify(msg, a.Sign(msg)) {
		t.Error("own signature does not verify")
	}
	if b.Public().Verify(msg, a.Sign(msg)) || (mesh.PublicKey{}).Verify(msg, a.Sign(msg)) {
		t.Error("a foreign key verifies the signature")
	}
}

func TestKeys_ZeroValuesAreNoKeys(t *testing.T) {
	if (mesh.PublicKey{}).Encode() != "" || !(mesh.PublicKey{}).WireGuard().IsZero() {
		t.Error("the zero public key encodes to something")
	}
	if !(mesh.WireGuardPrivateKey{}).Public().IsZero() || !(mesh.WireGuardPrivateKey{}).IsZero() {
		t.Error("the zero private key has a public half")
	}
	if !(mesh.PublicKey{2}).WireGuard().IsZero() {
		t.Error("bytes that are no point have a wireguard key")
	}
}

// Every seed gives keys that survive the wire, and the two ways from an
// identity to a WireGuard public key agree.
func TestKeys_RoundTripForEverySeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := mesh.KeyFromSeed(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed"))
		back, err := mesh.ParsePrivateKey(key.Encode())
		if err != nil || back != key {
			t.Fatalf("private key: %v", err)
		}
		public, err := mesh.ParsePublicKey(key.Public().Encode())
		if err != nil || public != key.Public() {
			t.Fatalf("public key: %v", err)
		}
		if public.WireGuard() != key.WireGuard().Public() {
			t.Fatal("the wireguard keys are no pair")
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(vectorPublic)
	f.Add(vectorPrivate)
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := mesh.ParsePublicKey(s)
		if err != nil {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Fatalf("error %v does not wrap ErrInvalid", err)
			}
			return
		}
		if key.Encode() != s {
			t.Fatalf("%q encodes as %q", s, key.Encode())
		}
		if key.WireGuard().IsZero() {
			t.Fatalf("%q has no wireguard key", s)
		}
	})
}

func FuzzParsePrivateKey(f *testing.F) {
	f.Add(vectorPrivate)
	f.Add(vectorPublic)
	f.Fuzz(func(t *testing.T, s string) {
		key, err := mesh.ParsePrivateKey(s)
		if err == nil && key.Encode() != s {
			t.Fatal("a key does not encode as it was given")
		}
	})
}
