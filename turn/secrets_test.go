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
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
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

// The bound of a credential is what the secret signs, for every server that has it.
func TestSecrets_MintBounded(t *testing.T) {
	ours, _ := NewSecrets(testSecret, nil)
	theirs, _ := NewSecrets(testSecret, nil)
	longest := strings.Repeat("x", maxUser)
	for _, tc := range []struct {
		user        string
		bound, want int64
	}{
		{"alice", 1_250_000, 1_250_000}, {"a/b:c", 1, 1}, {"alice", 0, 0}, {"alice", -1, 0}, {longest, maxBound, maxBound}, {longest, maxBound + 1, maxBound},
	} {
		c := ours.MintBounded(tc.user, time.Minute, tc.bound)
		if len(c.Username) > 508 {
			t.Errorf("a username of %d bytes", len(c.Username))
		}
		if got := verify(t, theirs, c, "r"); got != authenticated {
			t.Errorf("%d bytes a second: %s", tc.bound, got)
		}
		if a, _ := theirs.account([]byte(c.Username), "r"); a.User != tc.user || a.BytesPerSecond != tc.want {
			t.Errorf("%.20q has %d bytes a second, want %d", a.User, a.BytesPerSecond, tc.want)
		}
		// Nobody lifts a bound without the secret.
		end, _, _ := strings.Cut(c.Username, ":")
		end, _, bounded := strings.Cut(end, "/")
		c.Username = end + ":" + tc.user
		if got := verify(t, theirs, c, "r"); bounded != (got == mismatch) {
			t.Errorf("%d bytes a second, taken away: %s", tc.bound, got)
		}
	}
	soon := strconv.FormatInt(time.Now().Unix()+60, 10)
	for _, username := range []string{soon + "/:u", soon + "/0:u", soon + "/-1:u", soon + "/1k:u", soon + "/1/1:u", "/" + soon + ":u", soon + "/9223372036854775808:u"} {
		if got, want := verify(t, theirs, Credential{Username: username, Password: password(testSecret, username)}, "r"), core.FailedUnknown.String(); got != want {
			t.Errorf("%s: %s, want %s", username, got, want)
		}
	}
}

// Who counts milliseconds gets no credential that is good for good.
func TestSecrets_RefuseWhatNeverEnds(t *testing.T) {
	s, err := NewSecrets(testSecret, nil)
	if err != nil {
		t.Fatal(err)
	}
	username := strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10) + ":shop.alice"
	endless := Credential{Username: username, Password: password(testSecret, username)}
	if got, want := verify(t, s, endless, "r"), core.FailedTooFar.String(); got != want {
		t.Errorf("milliseconds: %s, want %s", got, want)
	}
	if got := verify(t, s, s.Mint("u", 365*24*time.Hour), "r"); got != authenticated {
		t.Errorf("a year: %s", got)
	}
}

// The outcomes of verify beside the names of failures.
const (
	authenticated = "authenticated"
	mismatch      = "mismatch"
	expired       = "expired"
	undecided     = "undecided"
)

// verify has a core ask s about a request that is signed with a credential, and
// returns what it says.
func verify(t testing.TB, s *Secrets, cred Credential, realm string) string {
	t.Helper()
	at := core.Listener{Addr: netip.MustParseAddrPort("127.0.0.1:3478")}
	c, err := core.New(time.Now(), core.Config{
		Realm: "r", Listeners: []core.Listener{at}, Offers: core.Offers{IPv4: true}, Authenticator: &accounts{realm: "r", secrets: s},
	})
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(attrs ...stun.Setter) *stun.Message {
		var out core.Output
		m := stun.MustBuild(append([]stun.Setter{stun.TransactionID, stun.NewType(stun.MethodRefresh, stun.ClassRequest)}, attrs...)...)
		c.FromClient(time.Now(), core.Flow{Client: publicPeer}, m.Raw, &out)
		if len(out.Actions) == 0 {
			return new(stun.Message)
		}
		res := &stun.Message{Raw: out.Actions[0].Data}
		if err := res.Decode(); err != nil {
			t.Fatal(err)
		}
		return res
	}
	var nonce stun.Nonce
	if err := nonce.GetFrom(exchange(stun.NewSoftware("as long"), stun.Fingerprint)); err != nil {
		t.Fatal(err)
	}
	res := exchange(stun.NewUsername(cred.Username), stun.NewRealm(realm), nonce,
		stun.NewLongTermIntegrity(cred.Username, realm, cred.Password), stun.Fingerprint)
	for i, n := range c.Stats().Failed {
		if n > 0 {
			return core.Failure(i).String()
		}
	}
	if code(res) == 437 { // there is no allocation to refresh, as only this user learns
		return authenticated
	}
	return fmt.Sprint(code(res))
}

func TestSecrets_CredentialsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := NewSecrets(nil, nil)
		c := s.Mint("u", time.Minute)
		verify := func() string { return verify(t, s, c, "r") }
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
	check := func(name string, c Credential, want string) {
		t.Helper()
		if got := verify(t, s, c, "r"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if a, _ := s.account([]byte(c.Username), "r"); a.User != "u" {
			t.Errorf("%s: user %q", name, a.User)
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
	if got := verify(t, shared, second, "r"); got != authenticated {
		t.Errorf("a server that has the secret as its previous one: %s", got)
	}
	if got := verify(t, shared, second, "other realm"); got != core.FailedUnknown.String() {
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
		for _, s := range []*Secrets{&zero, s} {
			if got := verify(t, s, Credential{Username: username, Password: p}, "r"); got != mismatch {
				t.Errorf("password %q: %q", p, got)
			}
		}
	}
}

func TestSecrets_MintsOnlyUsableUsers(t *testing.T) {
	s, _ := NewSecrets(nil, nil)
	for _, user := range []string{"", strings.Repeat("x", maxUser+1), "static:u"} {
		if c := s.Mint(user, time.Minute); c != (Credential{}) {
			t.Errorf("user of %d bytes: minted %q", len(user), c.Username)
		}
		username := fmt.Sprintf("%d:%s", time.Now().Unix()+60, user)
		if a, known := s.account([]byte(username), "r"); known {
			t.Errorf("user of %d bytes: %v", len(user), a.User)
		}
	}
	if got := verify(t, s, s.Mint(strings.Repeat("x", maxUser), time.Minute), "r"); got != authenticated {
		t.Errorf("the longest user: %s", got)
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
	theirs := minter.Mint("u", time.Hour)
	for name, end := range map[string]struct {
		end  func(*Secrets)
		want string
	}{
		"the secret comes":   {func(s *Secrets) { _ = s.Rotate(shared) }, authenticated},
		"no secret is to be": {(*Secrets).Settle, mismatch},
	} {
		s, err := NewSecrets(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Await()
		if got := verify(t, s, theirs, "r"); got != undecided {
			t.Errorf("meanwhile: %q", got)
		}
		if got := verify(t, s, s.Mint("u", time.Hour), "r"); got != authenticated {
			t.Errorf("what it minted itself: %q", got)
		}
		end.end(s)
		if got := verify(t, s, theirs, "r"); got != end.want {
			t.Errorf("%s: %q, want %q", name, got, end.want)
		}
	}
}

// FuzzSecrets_Account holds that no username is taken for more than it says.
func FuzzSecrets_Account(f *testing.F) {
	for _, s := range []string{"1700000000:alice", "9223372036854775807:u", "-1:u", "0:", ":", "1:static:x", "1:a:b", "1", "\xff:\x00", "1/2:a", "1/0:a", "1/:a", "1/9223372036854775807:a/b", "1:2/3"} {
		f.Add([]byte(s))
	}
	s, err := NewSecrets(testSecret, []byte("another secret of length"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, username []byte) {
		a, known := s.account(username, "r")
		if !known {
			if a.User != "" || len(a.Keys) > 0 {
				t.Fatalf("%q is nobody and has %+v", username, a)
			}
			return
		}
		end, user, _ := strings.Cut(string(username), ":")
		end, bound, bounded := strings.Cut(end, "/")
		n, err := strconv.ParseUint(end, 10, 63)
		if b, err := strconv.ParseUint(bound, 10, 63); bounded && (err != nil || b == 0) || a.BytesPerSecond != int64(min(b, maxBound)) {
			t.Fatalf("%q has %d bytes a second", username, a.BytesPerSecond)
		}
		if err != nil || user != a.User || !usable(user) || len(a.Keys) != 2 || a.Expires.Unix() != int64(min(n, maxExpiry)) {
			t.Fatalf("%q is %q until %v", username, a.User, a.Expires)
		}
	})
}
