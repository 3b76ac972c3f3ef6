// SPDX-License-Identifier: Apache-2.0

// Package deptest holds the rules that the whole tree keeps: which package may
// import which, who may use which dependency, how files are named and that
// everything exported is documented. The rules are the tables in this file.
package deptest

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// allowed is the import table of ARCHITECTURE.md: each subtree, and the
// subtrees it may import besides itself and the standard library; "x/." is the
// package x without what is below it. The longest
// key that holds a package applies to it. What is not here is forbidden: the
// packages right below these have a key each (checkTable), so that none gets
// the rights of the one that owns it.
func allowed() map[string][]string {
	return map[string][]string{
		"cmd":     {"gateway", "node", "turn", "signaling", "proto", "web"},
		"gateway": {"signaling", "turn", "node", "web", "proto"},
		// Of the store it knows the contract and none that keeps it.
		"gateway/api":      {"signaling", "node/policy", "node/mesh", "node/store/.", "proto"},
		"gateway/gather":   {},
		"signaling":        {"node/mesh", "proto"},
		"signaling/rtc":    {},
		"signaling/bridge": {},
		"signaling/client": {"signaling/rtc", "signaling/bridge", "node/mesh", "proto"},
		// A node reaches peers through allocations on the TURN servers of gateways, and
		// a gateway answers strangers no more often than its TURN server does.
		"node": {"turn/client", "turn/limiter", "proto"},
		// Features, protocols of edges, resources and verbs are enums of the API:
		// who reads these fields of a value needs their names.
		"node/member":   {"node/registry", "node/ipam", "node/policy", "node/mesh", "proto"},
		"node/admin":    {"node/registry", "node/policy", "node/mesh", "proto"},
		"node/policy":   {"node/mesh", "proto"},
		"node/registry": {"node/store", "node/mesh", "proto"},
		"node/secrets":  {"node/store", "node/mesh"},
		"node/store":    {"node/durable", "proto"},
		"node/durable":  {},
		"node/heap":     {},
		"node/peer":     {"node/mesh", "proto"},
		// A plan holds what the ACLs grant: there is one evaluator of them.
		"node/topology": {"node/policy", "node/mesh", "proto"},
		"node/ipam":     {"node/mesh"},
		"node/wg":       {"node/mesh"},
		"node/hostnet":  {"node/mesh"},
		"node/path":     {"node/mesh"},
		"node/netcheck": {"node/path", "node/mesh", "turn/client"},
		"node/pair":     {"node/path", "node/wg", "node/mesh", "proto"},
		"node/mesh":     {"proto"},
		"turn":          {},
		"turn/client":   {},
		"turn/core":     {},
		"turn/limiter":  {},
		"turn/shard":    {"turn/core"},
		"turn/stream":   {"turn/core"},
		"turn/xdp":      {"turn/core"},
		"web":           {},
		"proto":         {},
	}
}

// free are the subtrees to which neither table applies: tests of the whole and
// tools of the developers.
func free() []string { return []string{"internal"} }

// rpcEdges are where the RPC library may be used.
func rpcEdges() []string {
	return []string{"cmd", "gateway", "node/peer", "node/store/remote"}
}

// owners are the subtrees that may import a dependency, which is a prefix of
// import paths. Each technology stays behind the package that wraps it.
func owners() map[string][]string {
	return map[string][]string{
		"github.com/pion/webrtc":      {"signaling/rtc"},
		"github.com/pion/ice":         {"signaling/rtc"},
		"github.com/pion/dtls":        {"signaling/rtc"},
		"github.com/pion/sctp":        {"signaling/rtc"},
		"github.com/pion/datachannel": {"signaling/rtc"},
		"github.com/pion/sdp":         {"signaling/rtc"},
		"github.com/pion/turn":        {},
		"github.com/pion/stun":        {"signaling/rtc"},
		"github.com/hashicorp/raft":   {"node/store"},
		"github.com/cilium/ebpf":      {"turn/xdp"},
		"golang.zx2c4.com/wireguard":  {"node/wg"},
		"gvisor.dev/gvisor":           {"node/wg"},
		"github.com/vishvananda":      {"node/hostnet"},
		"github.com/google/nftables":  {"node/hostnet"},
		"github.com/mdlayher":         {"node/hostnet"},
		"os/exec":                     {"node/hostnet"},
		"connectrpc.com":              rpcEdges(),
		"google.golang.org/grpc":      rpcEdges(),
		"github.com/go-chi/chi":       {"gateway"},
		"github.com/coder/websocket":  {"gateway"},
		"github.com/spf13/cobra":      {"cmd"},
		"github.com/spf13/pflag":      {"cmd"},
		"github.com/knadh/koanf":      {"cmd"},
		"go.yaml.in/yaml":             {"cmd"},
		"github.com/rogpeppe":         {},
		"flag":                        {"cmd"},
		"pgregory.net/rapid":          {},
		"github.com/anishathalye":     {},
		"github.com/google/go-cmp":    {},
		"go.uber.org/goleak":          {},
	}
}

func TestImports_FollowTheTable(t *testing.T) {
	report(t, checkImports(repository(t)))
}

func TestImportTable_NamesEveryPackage(t *testing.T) {
	report(t, checkTable(repository(t), allowed()))
}

func TestDependencies_StayWithTheirOwners(t *testing.T) {
	report(t, checkOwners(repository(t)))
}

func TestProductionCode_ImportsNoTestSupport(t *testing.T) {
	report(t, checkTestImports(repository(t)))
}

func TestProcess_BelongsToCmd(t *testing.T) {
	report(t, checkProcess(repository(t)))
}

// report fails the test for each violation.
func report(t *testing.T, violations []string) {
	t.Helper()
	for _, v := range violations {
		t.Error(v)
	}
}

// isFree reports whether dir lies in a free subtree.
func isFree(dir string) bool {
	return slices.ContainsFunc(free(), func(root string) bool { return within(dir, root) })
}

// production reports whether the tables apply to a file. Tests may import what
// they need.
func production(f *source) bool { return !f.test() && !isFree(f.dir) }

// checkImports holds every import within the module against the table.
func checkImports(files []*source) []string {
	var violations []string
	table := allowed()
	for _, f := range files {
		if !production(f) {
			continue
		}
		key := longest(table, f.dir)
		if key == "" {
			violations = append(violations, fmt.Sprintf("%s: package %s is not in the import table", f.path, f.dir))
			continue
		}
		for _, p := range f.imports() {
			target, ours := strings.CutPrefix(p, module+"/")
			if !ours || within(target, key) {
				continue
			}
			if !slices.ContainsFunc(table[key], func(v string) bool { return covers(v, target) }) {
				violations = append(violations, fmt.Sprintf("%s: %s may not import %s", f.path, key, target))
			}
		}
	}
	return violations
}

// covers reports whether an entry of the import table allows a package.
func covers(entry, target string) bool {
	if dir, alone := strings.CutSuffix(entry, "/."); alone {
		return target == dir
	}
	return within(target, entry)
}

// checkTable finds packages that would get their parent's rights, and keys of
// packages that are not there.
func checkTable(files []*source, table map[string][]string) []string {
	var violations []string
	parents := []string{"node", "signaling", "gateway"}
	used := map[string]bool{}
	for _, f := range files {
		if !production(f) {
			continue
		}
		used[longest(table, f.dir)] = true
		if _, ok := table[f.dir]; !ok && slices.Contains(parents, path.Dir(f.dir)) && !used[f.dir] {
			violations = append(violations, fmt.Sprintf("package %s has no key in the import table", f.dir))
			used[f.dir] = true
		}
	}
	for key := range table {
		if !used[key] {
			violations = append(violations, fmt.Sprintf("the import table has the key %s, and there is no such package", key))
		}
	}
	return violations
}

// longest returns the longest key of the table that holds dir; "" for none.
func longest(table map[string][]string, dir string) string {
	found := ""
	for key := range table {
		if within(dir, key) && len(key) > len(found) {
			found = key
		}
	}
	return found
}

// checkOwners holds every import of a dependency against its owners.
func checkOwners(files []*source) []string {
	var violations []string
	for _, f := range files {
		if !production(f) || f.generated() {
			continue
		}
		for _, p := range f.imports() {
			for dependency, owners := range owners() {
				if !within(p, dependency) && !strings.HasPrefix(p, dependency+"-") {
					continue
				}
				if !slices.ContainsFunc(owners, func(o string) bool { return within(f.dir, o) }) {
					violations = append(violations, fmt.Sprintf("%s: %s belongs to %v", f.path, p, owners))
				}
			}
		}
	}
	return violations
}

// supports reports whether an import path is for tests: testing and what lies
// below it, and packages named after what they help to test, such as storetest.
func supports(p string) bool {
	return within(p, "testing") || strings.HasSuffix(path.Base(p), "test")
}

// checkTestImports finds production code that imports packages for tests.
// Packages for tests may import one another.
func checkTestImports(files []*source) []string {
	var violations []string
	for _, f := range files {
		if !production(f) || supports(f.dir) {
			continue
		}
		for _, p := range f.imports() {
			if supports(p) {
				violations = append(violations, fmt.Sprintf("%s: production code imports %s", f.path, p))
			}
		}
	}
	return violations
}

// processNames are the parts of package os that are the process's own:
// arguments, environment and exit.
func processNames() []string {
	return []string{"Args", "Environ", "Exit", "ExpandEnv", "Getenv", "LookupEnv", "Setenv", "Unsetenv"}
}

// checkProcess finds code outside cmd that reads the command line or the
// environment, or ends the process.
func checkProcess(files []*source) []string {
	var violations []string
	for _, f := range files {
		if !production(f) || within(f.dir, "cmd") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := selector.X.(*ast.Ident); ok && pkg.Name == "os" && slices.Contains(processNames(), selector.Sel.Name) {
				violations = append(violations, fmt.Sprintf("%s: only cmd may use os.%s", f.at(n), selector.Sel.Name))
			}
			return true
		})
	}
	return violations
}
