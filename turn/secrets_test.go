// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"
)

var testSecret = []byte("north-south-east-west")

func TestSecrets_MintFollowsTheConvention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewSecrets(testSecret, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := s.Mint("alice:phone", 10*time.Minute)
		if want := strconv.FormatInt(time.Now().Unix()+600, 10) + ":alice:phone"; c.Username != want {
			t.Errorf("username %q, want %q", c.Username, want)
		}
		h := hmac.New(sha1.New, testSecret)
		h.Write([]byte(c.Username))
		if want := base64.StdEncoding.EncodeToString(h.Sum(nil)); c.Password != want {
			t.Errorf("password %q, want %q", c.Password, want)
		}
		if want := time.Now().Add(10 * time.Minute); !c.ExpiresAt.Equal(want) {
			t.Errorf("expires %v, want %v", c.ExpiresAt, want)
		}
	})
}

// signedBy returns an Allocate request with the credential, as a client makes it.
func signedBy(t testing.TB, c Credential, realm string) message {
	t.Helper()
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), transportUDP,
		stun.NewUsername(c.Username), stun.NewRealm(realm), stun.NewNonce("n"),
		stun.NewLongTermIntegrity(c.Username, realm, c.Password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return message(m.Raw)
}

func TestSecrets_CredentialsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := NewSecrets(nil, nil)
		m := signedBy(t, s.Mint("u", time.Minute), "r")
		verify := func() failure {
			_, _, f := s.authenticate(m, "r", time.Now())
			return f
		}
		if got := verify(); got != authenticated {
			t.Errorf("at once: %s", got)
		}
		time.Sleep(59 * time.Second) // the bubble's clock
		if got := verify(); got != authenticated {
			t.Errorf("a second before the end: %s", got)
		}
		time.Sleep(time.Second)
		if got := verify(); got != expired {
			t.Errorf("at the end: %s", got)
		}
	})
}

func TestSecrets_Rotation(t *testing.T) {
	s, _ := NewSecrets(nil, nil)
	check := func(name string, c Credential, want failure) {
		t.Helper()
		user, key, got := s.authenticate(signedBy(t, c, "r"), "r", time.Now())
		if got != want || (got == authenticated) != (user == "u" && len(key) == 16) {
			t.Errorf("%s: %q, user %q, want %q", name, got, user, want)
		}
	}
	first := s.Mint("u", time.Hour)
	check("first", first, authenticated)
	if err := s.Rotate(testSecret); err != nil {
		t.Fatal(err)
	}
	second := s.Mint("u", time.Hour)
	check("first after one rotation", first, authenticated)
	check("second", second, authenticated)
	if err := s.Rotate([]byte("another secret of length")); err != nil {
		t.Fatal(err)
	}
	check("first after two rotations", first, mismatch)
	check("second after one rotation", second, authenticated)

	shared, err := NewSecrets([]byte("0123456789abcdef"), testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, got := shared.authenticate(signedBy(t, second, "r"), "r", time.Now()); got != authenticated {
		t.Errorf("a server that has the secret as its previous one: %s", got)
	}
	if _, _, got := shared.authenticate(signedBy(t, second, "other realm"), "r", time.Now()); got != mismatch {
		t.Errorf("another realm: %s", got)
	}
}

func TestSecrets_WeakOrEmptyAreRefused(t *testing.T) {
	for _, tc := range []struct{ current, previous []byte }{
		{[]byte{}, nil}, {[]byte("short"), nil}, {testSecret, []byte{}}, {testSecret, []byte("short")},
	} {
		if _, err := NewSecrets(tc.current, tc.previous); !errors.Is(err, ErrWeakSecret) {
			t.Errorf("NewSecrets(%q, %q): %v", tc.current, tc.previous, err)
		}
	}
	s, _ := NewSecrets(testSecret, nil)
	for _, next := range [][]byte{nil, {}, []byte("short")} {
		if err := s.Rotate(next); !errors.Is(err, ErrWeakSecret) {
			t.Errorf("Rotate(%q): %v", next, err)
		}
	}
	var zero Secrets
	if c := zero.Mint("u", time.Hour); c != (Credential{}) {
		t.Errorf("zero secrets minted %q", c.Username)
	}
	username := fmt.Sprintf("%d:u", time.Now().Unix()+60)
	for _, p := range []string{"", password(nil, username), password([]byte{}, username)} {
		m := signedBy(t, Credential{Username: username, Password: p}, "r")
		for _, s := range []*Secrets{&zero, s} {
			if _, _, got := s.authenticate(m, "r", time.Now()); got != mismatch {
				t.Errorf("password %q: %q", p, got)
			}
		}
	}
}

func TestSecrets_MintsOnlyUsableUsers(t *testing.T) {
	s, _ := NewSecrets(nil, nil)
	for _, user := range []string{"", strings.Repeat("x", maxUser+1)} {
		if c := s.Mint(user, time.Minute); c != (Credential{}) {
			t.Errorf("user of %d bytes: minted %q", len(user), c.Username)
		}
	}
	c := s.Mint(strings.Repeat("x", maxUser), time.Minute)
	if m := signedBy(t, c, "r"); !check(m) {
		t.Error("the longest user makes a request that the guard drops")
	}
}

func TestSecrets_RandomOnesDiffer(t *testing.T) {
	a, _ := NewSecrets(nil, nil)
	b, _ := NewSecrets(nil, nil)
	if bytes.Equal(a.current, b.current) || len(a.current) < 32 {
		t.Errorf("secrets %x and %x", a.current, b.current)
	}
}

func TestCredential_NeverPrintsThePassword(t *testing.T) {
	s, _ := NewSecrets(nil, nil)
	c := s.Mint("u", time.Minute)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "credential", c)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v", c, c, c), log.String()} {
		if strings.Contains(text, c.Password) {
			t.Errorf("%q has the password", text)
		}
	}
	if b, _ := json.Marshal(c); !bytes.Contains(b, []byte(c.Username)) {
		t.Error("a credential must be fit to send to its user")
	}
}

// As long as the secret of the mesh is on its way, nobody is told that a good
// credential is wrong.
func TestSecrets_Await(t *testing.T) {
	shared := []byte("0123456789abcdef")
	minter, err := NewSecrets(shared, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := signedBy(t, minter.Mint("u", time.Hour), "r")
	for name, end := range map[string]struct {
		end  func(*Secrets)
		want failure
	}{
		"the secret comes":   {func(s *Secrets) { _ = s.Rotate(shared) }, authenticated},
		"no secret is to be": {(*Secrets).Settle, mismatch},
	} {
		s, err := NewSecrets(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Await()
		if _, _, got := s.authenticate(m, "r", time.Now()); got != undecided {
			t.Errorf("meanwhile: %q", got)
		}
		own := signedBy(t, s.Mint("u", time.Hour), "r")
		if _, _, got := s.authenticate(own, "r", time.Now()); got != authenticated {
			t.Errorf("what it minted itself: %q", got)
		}
		end.end(s)
		if _, _, got := s.authenticate(m, "r", time.Now()); got != end.want {
			t.Errorf("%s: %q, want %q", name, got, end.want)
		}
	}
}
