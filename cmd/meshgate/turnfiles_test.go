// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn"
	"github.com/meshgate/meshgate/turn/client"
)

func TestSecretLines(t *testing.T) {
	for text, want := range map[string][2]string{
		"":                         {},
		" \n\n":                    {},
		"one two\n":                {"one two"},
		"\n one \r\n\n two \n":     {"one", "two"},
		"first\nsecond\nthe third": {},
	} {
		lines, err := secretLines([]byte(text))
		if (err == nil) != (want[0] != "") || err == nil && (string(lines[0]) != want[0] || string(lines[1]) != want[1]) {
			t.Errorf("%q: %q, %v", text, lines, err)
		}
	}
}

// Who may not read a file of TURN is told as whom the gateway tried.
func TestTURNFiles_SayWhoMayNotReadThem(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "/etc/meshgate/turn.secret", Err: syscall.EACCES}
	if err := unreadable(denied); !errors.Is(err, denied) || !strings.Contains(err.Error(), fmt.Sprintf("(uid %d)", os.Geteuid())) {
		t.Errorf("got %v", err)
	}
	if _, err := readTURNFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "uid") {
		t.Errorf("of a file that is not there: %v", err)
	}
}

func TestTURNAddress(t *testing.T) {
	for text, want := range map[string]string{
		":3478": "[::]:3478", "0.0.0.0:1": "0.0.0.0:1", "[::1]:2": "[::1]:2", "192.0.2.1:0": "192.0.2.1:0", "localhost:3": "127.0.0.1:3",
		"3478": "", "127.0.0.1": "", "127.0.0.1:none-such": "", "": "",
	} {
		got, err := turnAddress(t.Context(), text)
		if want == "127.0.0.1:3" && got.Addr().IsLoopback() {
			continue // or the other one
		}
		if (err == nil) != (want != "") || err == nil && got != netip.MustParseAddrPort(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// What is in the files of TURN holds soon after they have changed, and nobody loses
// a relay by that who is still in them.
func TestTURNFiles_AreReadAgain(t *testing.T) {
	dir := t.TempDir()
	secrets, users := filepath.Join(dir, "secrets"), filepath.Join(dir, "users")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(secrets, "the first secret of all\n")
	write(users, "ann:correct horse battery\nbob:staple of the battery\n")
	p := devGateway(t, "turn.secret-file", secrets, "turn.users-file", users)
	allocate := func(username, password string) error {
		a, err := client.Allocate(t.Context(), client.Config{
			Server: "turn:" + p.turn.UDPAddrs()[0].String() + "?transport=udp", Username: username, Password: password,
		})
		if err == nil {
			t.Cleanup(func() { a.Close() })
		}
		return err
	}
	check := func(what, username, password string, want bool) {
		t.Helper()
		if err := allocate(username, password); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	first := p.secrets.Mint("u", time.Minute)
	check("a static user", "ann", "correct horse battery", true)
	check("another one", "bob", "staple of the battery", true)
	check("of the first secret", first.Username, first.Password, true)

	write(secrets, "the second secret of all\nthe first secret of all\n")
	write(users, "ann:correct horse battery\n")
	p.rereadTURNFiles(true)
	second := p.secrets.Mint("u", time.Minute)
	other, err := turn.NewSecrets([]byte("the second secret of all"), nil)
	if err != nil {
		t.Fatal(err)
	}
	theirs := other.Mint("v", time.Minute)
	check("of the first secret, still", first.Username, first.Password, true)
	check("of the second secret", second.Username, second.Password, true)
	check("of another issuer that has it", theirs.Username, theirs.Password, true)
	check("who is gone", "bob", "staple of the battery", false)
	if list := p.turn.Allocations(); len(list) != 5 {
		t.Errorf("%d allocations, want 5: bob's has ended", len(list))
	}
	for _, bad := range []string{"short", "a\nb\nc"} {
		write(secrets, bad)
		write(users, "ann:"+bad)
		p.rereadTURNFiles(true)
		check("after "+bad, second.Username, second.Password, true)
	}
	write(secrets, "the second secret of all\n")
	p.rereadTURNFiles(true)
	check("of the first secret, at last", first.Username, first.Password, false)
}

// A file that is half written, empty or away changes nothing, and is told of.
func TestTURNFiles_AreWhole(t *testing.T) {
	const both = "ann:correct horse battery\nbob:staple of the battery\n"
	users := secretOf(t, both)
	p := devGateway(t, "turn.users-file", users)
	var log bytes.Buffer
	p.log = slog.New(slog.NewTextHandler(&log, nil))
	for _, tt := range []struct {
		what, text  string
		looks, want int
		told        string // "": nothing
	}{
		{"half of it", "ann:correct horse", 1, 2, ""},
		{"the rest", both, 1, 2, ""},
		{"empty", "", 3, 2, "is empty"},
		{"away for a moment", "away", 1, 2, ""},
		{"back", both, 2, 2, "was read again"},
		{"away", "away", 5, 2, "cannot be read"},
		{"another one", "ann:correct horse battery\n", 2, 1, "was read again"},
		{"none is wanted", "# none\n", 2, 0, "more than half"},
	} {
		log.Reset()
		err := os.RemoveAll(users)
		if err == nil && tt.text != "away" {
			err = os.WriteFile(users, []byte(tt.text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		for range tt.looks {
			p.rereadTURNFiles(false)
		}
		if n := p.turnUsers.Len(); n != tt.want || strings.Count(log.String(), tt.told) != 1 && tt.told != "" || tt.told == "" && log.Len() > 0 {
			t.Errorf("%s: %d users; the log says %q", tt.what, n, log.String())
		}
	}
}

// The files of TURN are followed also while nothing else of the gateway is up, and
// at once when it is told to.
func TestFollowTURN_ReadsWhenTold(t *testing.T) {
	users := secretOf(t, "ann:correct horse battery\nbob:staple of the battery\n")
	p := devGateway(t, "turn.users-file", users)
	if err := os.WriteFile(users, []byte("ann:correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	again, ended := make(chan os.Signal), make(chan struct{})
	go func() { defer close(ended); p.followTURN(ctx, again) }()
	again <- syscall.SIGHUP
	again <- syscall.SIGHUP // it has read by now
	if n := p.turnUsers.Len(); n != 1 {
		t.Errorf("%d users", n)
	}
	cancel()
	<-ended
}
