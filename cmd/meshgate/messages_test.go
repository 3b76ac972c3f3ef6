// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// Days are no unit of a duration, which people do not expect.
func TestUp_SaysHowToWriteDays(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"up", "--mesh.purge-after", "90d"}, &stdout, &stderr)
	if code != exitUsage || !strings.Contains(stderr.String(), "2160h") {
		t.Errorf("exit code %d, %s", code, &stderr)
	}
}

// A node that does not answer is looked at next.
func TestExplain_NoAnswerOnAnyPath(t *testing.T) {
	if text := explain(errors.New("phone: no answer on any path")); !strings.Contains(text, "meshgate status NODE") {
		t.Error(text)
	}
}

// Who answers at another port than that of the API, as TURN does, ends what it does
// not understand.
func TestExplain_NoGatewaysAPI(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 16<<10)) // what it is does not matter
			_ = c.Close()
		}
	}()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"get", "nodes", "--token", "x", "--server", "https://" + l.Addr().String()}, &stdout, &stderr)
	if code != exitFailed || !strings.Contains(stderr.String(), "is not the API of a gateway") || !strings.Contains(stderr.String(), "8443") {
		t.Errorf("exit code %d, %s", code, &stderr)
	}
	if text := explain(errors.New(`node "a" may ask for its own paths only`)); !strings.Contains(text, "--server and --token-file") {
		t.Error(text)
	}
}

// A folder that is not there is named, not the file that would have been in it.
func TestWriteBackup_NamesTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	_, err := new(app).writeBackup(filepath.Join(dir, "x"), func(io.Writer) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "folder "+dir+":") || strings.Contains(err.Error(), ".backup-") {
		t.Error(err)
	}
}

// Any node and any network are anybody, once.
func TestNetworkACLs_AnybodyIsShownOnce(t *testing.T) {
	k, err := findKind("networkacls")
	if err != nil {
		t.Fatal(err)
	}
	everybody := []string{"*"}
	row := k.rows(&v1.NetworkACLs{Items: []*v1.NetworkACL{{
		Name: "all", SourceNodes: everybody, SourceCidrs: everybody, DestinationNodes: []string{"nas"}, DestinationCidrs: everybody,
	}}})[0]
	if row[3] != "*" || row[4] != "nas,*" || row[5] != "*" {
		t.Errorf("%q", row)
	}
}

// A list that is too large for one message can still be seen and made smaller.
func TestExplain_AListThatIsTooLarge(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewAdminHandler(hugeGroups{}))
	s := httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"get", "groups", "--server", s.URL, "--token", "x"}, &stdout, &stderr)
	if code == exitOK || !strings.Contains(stderr.String(), "larger than configured max") || !strings.Contains(stderr.String(), "meshgate get KIND NAME") {
		t.Errorf("exit code %d, %q", code, &stderr)
	}
}

// hugeGroups has groups of more than a client takes.
type hugeGroups struct {
	v1connect.UnimplementedAdminHandler
}

func (hugeGroups) ListGroups(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.Groups], error) {
	return connect.NewResponse(&v1.Groups{Items: []*v1.Group{{Name: strings.Repeat("x", peer.MaxMessage)}}}), nil
}
