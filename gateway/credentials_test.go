// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/bcrypt"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func writeFile(t testing.TB, path, content string, at time.Time) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func hashOf(token string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(token))) }

func TestTokens_File(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	now := time.Now()
	writeFile(t, path, "# people\n\n"+hashOf("first")+" alice\n"+hashOf("second")+"   bob\n", now.Add(-time.Hour))
	tokens, err := NewTokens(map[string]string{tokenOf("admin"): "admin"}, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	check := func(token, want string) {
		t.Helper()
		id, err := tokens.Authenticate(t.Context(), Credentials{Token: token})
		if id.ID != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, mesh.ErrUnauthenticated) {
			t.Errorf("%s: %q, %v", token, id.ID, err)
		}
	}
	check("first", "alice")
	check("second", "bob")
	check(tokenOf("admin"), "admin")
	check(hashOf("first"), "")
	check("third", "")
	writeFile(t, path, hashOf("third")+" carol\n", now)
	check("first", "")
	check("third", "carol")
	writeFile(t, path, "nonsense\n", now.Add(time.Hour))
	check("third", "carol")
	if _, err := tokens.Authenticate(t.Context(), Credentials{Username: "alice", Password: "first"}); !errors.Is(err, ErrOtherKind) {
		t.Errorf("a password: %v", err)
	}
}

func TestTokens_BadFiles(t *testing.T) {
	for content, want := range map[string]string{
		"short alice":                               "line 1",
		hashOf("a") + "\n":                          "line 1",
		hashOf("a") + " \n":                         "line 1",
		"\n" + hashOf("a") + " a/b\n":               "line 2",
		hashOf("a") + " a\n" + hashOf("a") + " b\n": "line 2",
		strings.Repeat("x", 1<<20):                  "line",
	} {
		path := filepath.Join(t.TempDir(), "tokens")
		writeFile(t, path, content, time.Now())
		if _, err := NewTokens(nil, path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v", content, err)
		}
	}
	if _, err := NewTokens(map[string]string{"short": "admin"}, "", nil); err == nil {
		t.Error("a token that can be guessed was taken")
	}
	if _, err := NewTokens(nil, filepath.Join(t.TempDir(), "absent"), nil); err == nil {
		t.Error("a missing file was taken")
	}
}

// long is a password of which bcrypt sees every byte, and would see no more.
func long() string { return strings.Repeat("0123456789ab", 6) }

// testPasswords knows alice with the password "right", and bob with long.
func testPasswords(t testing.TB) *Passwords {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	longHash, err := bcrypt.GenerateFromPassword([]byte(long()), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	writeFile(t, path, "# users\nalice:"+string(hash)+"\nbob:"+string(longHash)+"\n", time.Now())
	p, err := newPasswords(path, nil, bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func guess(p *Passwords, from, user, password string) error {
	_, err := p.Authenticate(context.Background(), Credentials{Username: user, Password: password, From: netip.MustParseAddr(from)})
	return err
}

func TestPasswords(t *testing.T) {
	p := testPasswords(t)
	if id, err := p.Authenticate(t.Context(), Credentials{Username: "alice", Password: "right"}); err != nil || id.ID != "alice" {
		t.Errorf("%q, %v", id.ID, err)
	}
	if id, err := p.Authenticate(t.Context(), Credentials{Username: "bob", Password: long()}); err != nil || id.ID != "bob" {
		t.Errorf("%q, %v", id.ID, err)
	}
	var texts []string
	for _, c := range []Credentials{
		{Username: "alice", Password: "wrong"},
		{Username: "alice", Password: "right "},
		{Username: "bob", Password: long() + "x"},
		{Username: "mallory", Password: "right"},
		{Username: "Alice", Password: "right"},
	} {
		_, err := p.Authenticate(t.Context(), c)
		if !errors.Is(err, mesh.ErrUnauthenticated) {
			t.Fatalf("%s: %v", c.Username, err)
		}
		texts = append(texts, err.Error())
	}
	for _, text := range texts {
		if text != texts[0] {
			t.Errorf("the texts tell cases apart: %q", texts)
		}
	}
	if _, err := p.Authenticate(t.Context(), Credentials{Token: "t"}); !errors.Is(err, ErrOtherKind) {
		t.Errorf("a token: %v", err)
	}
}

// The hash of an unknown user costs what the most expensive known one costs.
func TestPasswords_UnknownUsersCostTheSame(t *testing.T) {
	hash := func(cost int) string {
		h, err := bcrypt.GenerateFromPassword([]byte("x"), cost)
		if err != nil {
			t.Fatal(err)
		}
		return string(h)
	}
	f, err := parsePasswords([]byte("a:"+hash(4)+"\nb:"+hash(6)+"\n"), 4)
	if err != nil {
		t.Fatal(err)
	}
	stranger, known := f.hash("mallory")
	if cost, err := bcrypt.Cost(stranger); known || err != nil || cost != 6 {
		t.Errorf("cost %d, %v, known %v", cost, err, known)
	}
}

func TestPasswords_Guessing(t *testing.T) {
	p := testPasswords(t)
	synctest.Test(t, func(t *testing.T) {
		looked := func(from, user string, n int) (count int) {
			for i := range n {
				if err := guess(p, from, user, fmt.Sprint("guess ", i)); errors.Is(err, mesh.ErrUnauthenticated) {
					count++
				} else if !errors.Is(err, mesh.ErrExhausted) {
					t.Fatal(err)
				}
			}
			return count
		}
		if n := looked("192.0.2.1", "alice", 100); n != userFailures {
			t.Errorf("%d guesses were looked at", n)
		}
		if err := guess(p, "192.0.2.1", "alice", "right"); !errors.Is(err, mesh.ErrExhausted) {
			t.Errorf("the guesser goes on: %v", err)
		}
		if err := guess(p, "192.0.2.2", "alice", "right"); err != nil {
			t.Errorf("alice suffers elsewhere: %v", err)
		}
		pass(time.Minute)
		if n := looked("192.0.2.1", "alice", 100); n != userFailures {
			t.Errorf("%d guesses a minute later", n)
		}
		// Many names from one network, and one network with many addresses.
		count := 0
		for i := range 500 {
			count += looked(fmt.Sprintf("2001:db8::%x", i), fmt.Sprint("user", i), 1)
		}
		if count != networkFailures {
			t.Errorf("%d guesses at many names", count)
		}
	})
}

// Guesses made at the same time count as those one after the other.
func TestPasswords_GuessingInParallel(t *testing.T) {
	p := testPasswords(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	looked := 0
	for i := range 50 {
		wg.Go(func() {
			if errors.Is(guess(p, "192.0.2.1", "alice", fmt.Sprint(i)), mesh.ErrUnauthenticated) {
				mu.Lock()
				defer mu.Unlock()
				looked++
			}
		})
	}
	wg.Wait()
	if looked > userFailures+1 { // one may have come back meanwhile
		t.Errorf("%d guesses were looked at", looked)
	}
}

// A page that starts with many calls is no guesser.
func TestPasswords_ManyRightOnesAtOnce(t *testing.T) {
	p := testPasswords(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := guess(p, "192.0.2.1", "alice", "right"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestPasswords_ChangeCountsAtOnce(t *testing.T) {
	p := testPasswords(t)
	if err := guess(p, "192.0.2.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte("new"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, p.users.paths[0], "alice:"+string(hash)+"\n", time.Now().Add(time.Hour))
	if err := guess(p, "192.0.2.1", "alice", "right"); !errors.Is(err, mesh.ErrUnauthenticated) {
		t.Errorf("the old password: %v", err)
	}
	if err := guess(p, "192.0.2.1", "alice", "new"); err != nil {
		t.Errorf("the new password: %v", err)
	}
}

func TestPasswords_BadFiles(t *testing.T) {
	cheap, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{
		"alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=": "htpasswd -B -C 12",
		"alice:$apr1$x$y":                         "htpasswd -B -C 12",
		"alice:plain":                             "htpasswd -B -C 12",
		"alice":                                   "line 1",
		"alice:" + string(cheap):                  "cost of 12",
		":x":                                      "line 1",
		"a\\b:x":                                  "line 1",
	} {
		path := filepath.Join(t.TempDir(), "htpasswd")
		writeFile(t, path, content, time.Now())
		_, err := NewPasswords(path, nil)
		if want == "cost of 12" {
			want = "cost 12"
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// Passwords and tokens side by side, over the wire.
func TestPasswords_OverTheWire(t *testing.T) {
	passwords := testPasswords(t)
	s := serve(t, func(c *Config) { c.Access.Authenticators = append(c.Access.Authenticators, passwords) })
	snap := testSnapshot()
	snap.Bindings = append(snap.Bindings, mesh.RoleBinding{Name: "alice", Role: "viewer", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "alice"}}})
	s.node.set(snap)
	call := func(c *http.Client) error {
		_, err := v1connect.NewMeshClient(c, "http://"+s.public).GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
		return err
	}
	with := func(user, password string) *http.Client {
		return withHeader(withHeader(httpClient(t, true, "", nil), "X-Webmesh-Basic-Auth-Username", user), "X-Webmesh-Basic-Auth-Password", password)
	}
	if err := call(with("alice", "right")); err != nil {
		t.Error(err)
	}
	if err := call(bearer(httpClient(t, true, "", nil), "viewer")); err != nil {
		t.Error(err)
	}
	for range userFailures {
		if err := call(with("alice", "wrong")); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Error(err)
		}
	}
	if err := call(with("alice", "wrong")); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Error(err)
	}
	if n := s.metric(t, "meshgate_gateway_auth_failures_total", "limited"); n != 1 {
		t.Errorf("counted %v", n)
	}
	if err := call(withHeader(httpClient(t, true, "", nil), "X-Webmesh-Basic-Auth-Username", "alice")); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("half of the credentials: %v", err)
	}
}

// An authenticator that fails must not let anybody in, and its cause stays inside.
func TestAuthenticator_Faults(t *testing.T) {
	for _, tt := range []struct {
		id   string
		err  error
		want connect.Code
	}{
		{"", errors.New("ldap: secret"), connect.CodeInternal},
		{"", nil, connect.CodeInternal},
		{"a/b", nil, connect.CodeInternal},
		{"viewer", nil, 0},
		{"admin", ErrOtherKind, connect.CodeUnauthenticated},
	} {
		s := serve(t, func(c *Config) {
			c.Access.Authenticators = []Authenticator{authenticatorFunc(func() (string, error) { return tt.id, tt.err })}
		})
		_, err := v1connect.NewMeshClient(bearer(httpClient(t, true, "", nil), "viewer"), "http://"+s.public).
			GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"}))
		if tt.want == 0 != (err == nil) || err != nil && (connect.CodeOf(err) != tt.want || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

type authenticatorFunc func() (string, error)

func (f authenticatorFunc) Authenticate(context.Context, Credentials) (Identity, error) {
	id, err := f()
	return Identity{ID: id}, err
}

func (f authenticatorFunc) Generation() uint64 { return 0 }

func TestCredentials_NeverPrinted(t *testing.T) {
	c := Credentials{Token: "canary", Username: "canary", Password: "canary"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(format, c); strings.Contains(text, "canary") {
			t.Errorf("%s: %s", format, text)
		}
	}
	if strings.Contains(c.LogValue().String(), "canary") {
		t.Error("LogValue")
	}
}
