// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"
)

func TestUsers_Set(t *testing.T) {
	const password = "correct horse battery"
	for file, want := range map[string]string{
		"":                                       "",
		"# nobody\n\n":                           "",
		"ann:" + password + "\nbob:" + password:  "",
		"ann:" + password + ":with:colons":       "",
		"ann":                                    "line 1 of the turn users is not NAME:PASSWORD",
		"\nann:short":                            "line 2",
		":" + password:                           "name of 0 bytes",
		strings.Repeat("x", maxUser) + ":secret": "name of 480 bytes",
		"ann:" + password + "\nann:" + password:  `"ann" again`,
	} {
		var u Users
		_, err := u.Set([]byte(file))
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), password)) {
			t.Errorf("%.40q: %v", file, err)
		}
	}
	var many Users
	if _, err := many.Set([]byte(strings.Repeat("x", 1<<17))); err == nil {
		t.Error("a line of 128 KiB was taken")
	}
}

// Static users come and go with their file, and nobody is taken for one.
func TestServer_StaticUsers(t *testing.T) {
	users := &Users{}
	if _, err := users.Set([]byte("ann:correct horse battery")); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, func(c *Config) {
		c.Users = users
		c.AllowUser = func(string) bool { return false } // nobody who was minted for
	})
	ann := dialUDP(t, s, Credential{Username: "ann", Password: "correct horse battery"})
	ann.allocate()
	if got := s.Allocations(); len(got) != 1 || got[0].User != "static:ann" {
		t.Errorf("allocations %+v", got)
	}
	if got := s.Users(); len(got) != 0 {
		t.Errorf("users of minted credentials are %q", got)
	}
	for name, cred := range map[string]Credential{
		"wrong password": {Username: "ann", Password: "wrong"},
		"wrong name":     {Username: "bob", Password: "correct horse battery"},
		"minted":         s.secrets.Mint("ann", time.Minute),
		"by its name":    {Username: "static:ann", Password: "correct horse battery"},
	} {
		if got := code(dialUDP(t, s, cred).login().request(stun.MethodAllocate, transportUDP)); got != 401 {
			t.Errorf("%s: %d, want 401", name, got)
		}
	}
	if gone, err := users.Set(nil); err != nil || !slices.Equal(gone, []string{"static:ann"}) {
		t.Fatal(err, gone)
	}
	if got := code(ann.request(stun.MethodRefresh)); got != 401 {
		t.Errorf("refresh of who is no user any more: %d, want 401", got)
	}
	if n := s.Evict("static:ann"); n != 1 {
		t.Errorf("%d evicted", n)
	}
}

// FuzzUsers_Set holds that a file is taken as a whole or not at all, and that who is
// in it can come.
func FuzzUsers_Set(f *testing.F) {
	f.Add([]byte("# somebody\nann:correct horse battery\n\nbob: staple:of:a:battery \r\n"))
	f.Add([]byte("ann:short"))
	f.Add([]byte(":::\n\x00:\xff"))
	f.Fuzz(func(t *testing.T, file []byte) {
		u := &Users{passwords: map[string]string{"before": "correct horse battery"}}
		gone, err := u.Set(file)
		_, stays := u.passwords["before"]
		if err != nil && (len(gone) > 0 || len(u.passwords) != 1 || !stays) {
			t.Fatalf("%v, and the users are %v", err, u.passwords)
		}
		if err == nil && stays == (len(gone) == 1) {
			t.Fatalf("gone are %q of those before, and now there are %v", gone, u.passwords)
		}
		for name, password := range u.passwords {
			if a, ok := u.account([]byte(name), "r"); !ok || a.User != "static:"+name || len(password) < minPassword || len(a.User) > maxUser {
				t.Fatalf("%q with a password of %d bytes: %v", name, len(password), a.User)
			}
		}
	})
}
