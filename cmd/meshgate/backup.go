// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store/raftstore"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// backupOutput is the JSON form of what a backup holds.
type backupOutput struct {
	File    string    `json:"file"`
	Time    time.Time `json:"time"`
	Version uint64    `json:"version"`
	Keys    int       `json:"keys"`
}

// backupOptions say what a backup is taken of.
type backupOptions struct {
	// stale takes what the gateway holds, without a leader.
	stale bool
	// offline reads the directory of a gateway that does not run.
	offline bool
}

func (a *app) backupCommand() *cobra.Command {
	var o backupOptions
	var from access
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "write the state of the mesh to a file, or - for standard output",
		Long: "backup writes the whole state at one moment, while the mesh goes on, and checks it. The file\n" +
			"holds no private keys: keep " + nodeKeyFile + " of a gateway's data directory as well. It holds the\n" +
			"hashes of tokens and the secret of TURN credentials: keep it as you keep keys.\n" +
			"A file that is there is replaced once the new one is whole. With - it goes to standard output, whole\n" +
			"or not at all.\n" +
			"When the majority of the gateways is gone for good, --stale takes what one that runs holds, and\n" +
			"--offline what is in the --data-dir of one that does not run.",
		Args: args(cobra.ExactArgs(1), "the file to write"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if o.offline {
				return a.backupOffline(cmd.Flags(), &from, o, given[0])
			}
			gate, err := from.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			return a.backup(cmd.Context(), gate, o, given[0])
		},
	}
	from.registerServer(cmd.Flags())
	cmd.Flags().BoolVar(&o.stale, "stale", false, "take what the gateway holds, also without a leader; the last changes may be missing")
	cmd.Flags().BoolVar(&o.offline, "offline", false, "read --data-dir of a gateway that does not run, and ask nobody")
	return cmd
}

// nodeKeyFile is the identity of a gateway inside its data directory.
const nodeKeyFile = "node.key"

// backup takes one of a gateway that runs.
func (a *app) backup(ctx context.Context, c *peer.Public, o backupOptions, file string) error {
	info, err := a.writeBackup(file, func(w io.Writer) error {
		if err := fetchBackup(ctx, c, o.stale, w); err != nil {
			return fmt.Errorf("backup: %w", staleAdvice(o, err))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if o.stale {
		fmt.Fprintf(a.stderr, "this is what the gateway held, up to version %d: changes that others acknowledged without it are missing\n", info.Version)
	}
	return a.printBackup("backed up to", file, info)
}

// staleAdvice adds to an error of a backup which way is left to what the gateway
// holds.
func staleAdvice(o backupOptions, err error) error {
	switch {
	case connect.CodeOf(err) != connect.CodeUnavailable:
		return err
	case strings.Contains(err.Error(), "connection refused"):
		return fmt.Errorf("%w; if that gateway does not start, take what it holds with --offline and its --data-dir, on its host", err)
	case o.stale:
		return fmt.Errorf("%w; to take what this gateway holds all the same, stop it, and use --offline with its --data-dir, on its host", err)
	}
	return fmt.Errorf("%w; if the majority is gone for good, take what this gateway holds with --stale, or --offline while it does not run", err)
}

// backupOffline takes a backup of a directory that no gateway uses.
func (a *app) backupOffline(f *pflag.FlagSet, from *access, o backupOptions, file string) error {
	if err := fromSources(f, ""); err != nil {
		return err
	}
	switch {
	case o.stale:
		return usagef("--offline reads what is on disk, --stale asks a gateway that runs; give one")
	case f.Changed("server") || f.Changed("context"):
		return usagef("--offline asks no gateway: leave --server and --context out, and give --data-dir")
	case from.dataDir == "":
		return usagef("--offline needs the --data-dir of a gateway that does not run")
	}
	state := filepath.Join(from.dataDir, stateDir)
	info, err := a.writeBackup(file, func(w io.Writer) error {
		_, err := raftstore.BackupDir(state, w)
		if errors.Is(err, raftstore.ErrInUse) {
			return fmt.Errorf("%w: ask the gateway with --stale instead of --offline, or stop it first", err)
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "this is what %s held, up to version %d: changes that others acknowledged without it are missing,\n"+
		"and its last ones may have been acknowledged to nobody\n", state, info.Version)
	return a.printBackup("backed up to", file, info)
}

// toStdout is the file of a backup that goes to standard output.
const toStdout = "-"

// writeBackup writes beside the file first, so that a backup that breaks off
// does not cost the last good one, and checks what fetch wrote. What goes to
// standard output is in a temporary file until then.
func (a *app) writeBackup(file string, fetch func(io.Writer) error) (_ raftstore.BackupInfo, err error) {
	dir := filepath.Dir(file)
	if file == toStdout {
		dir = os.TempDir()
	}
	f, err := os.CreateTemp(dir, ".backup-*") // with mode 0600
	if err != nil {
		if wrong := (*os.PathError)(nil); errors.As(err, &wrong) {
			err = wrong.Err // the name of the file says nothing to anybody
		}
		return raftstore.BackupInfo{}, fmt.Errorf("make a file in the folder %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := fetch(f); err != nil {
		return raftstore.BackupInfo{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return raftstore.BackupInfo{}, err
	}
	info, err := raftstore.Verify(f)
	if err != nil {
		return info, fmt.Errorf("what arrived is not whole, try again: %w", err)
	}
	if file == toStdout {
		return info, a.copyOut(f)
	}
	if err := f.Sync(); err != nil {
		return info, err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return info, err
	}
	return info, f.Close()
}

// copyOut writes a file to standard output, and removes it.
func (a *app) copyOut(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(a.stdout, f); err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func fetchBackup(ctx context.Context, c *peer.Public, stale bool, w io.Writer) error {
	req := connect.NewRequest(&meshgatev1.BackupRequest{})
	if stale {
		req.Header().Set(api.HeaderStale, "true")
	}
	stream, err := c.Cluster().Backup(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // the reason is in Err already
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().GetData()); err != nil {
			return err
		}
	}
	return stream.Err()
}

func (a *app) printBackup(what, file string, info raftstore.BackupInfo) error {
	if file == toStdout {
		_, err := fmt.Fprintf(a.stderr, "%s standard output: %d keys of %s, version %d\n", what, info.Keys, info.Time.Format(time.RFC3339), info.Version)
		return err
	}
	if a.structured() {
		return a.print(backupOutput{File: file, Time: info.Time, Version: info.Version, Keys: info.Keys})
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s: %d keys of %s, version %d\n", what, file, info.Keys, info.Time.Format(time.RFC3339), info.Version)
	return err
}

func (a *app) restoreCommand() *cobra.Command {
	var check bool
	var dataDir, id string
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "make the state of a stopped gateway from a backup",
		Long: "restore makes the state of a gateway that does not run, and has none, from a backup. The gateway\n" +
			"is then the only one of its mesh; others join it with --cluster.join. It must be a gateway that\n" +
			"the mesh had: put its " + nodeKeyFile + " into the data directory before. What it writes belongs to\n" +
			"the owner of the data directory, also when root runs it.",
		Args: args(cobra.ExactArgs(1), "the file of a backup"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if err := fromSources(cmd.Flags(), ""); err != nil {
				return err
			}
			if check {
				return a.checkBackup(given[0])
			}
			return a.restore(given[0], dataDir, id)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "only say whether the file is whole, and what it holds")
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir, "data directory of the gateway")
	cmd.Flags().StringVar(&id, "id", "", "the gateway's node id (default: the host's name)")
	return cmd
}

func (a *app) checkBackup(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	info, err := raftstore.Verify(f)
	if err != nil {
		return err
	}
	return a.printBackup("whole:", file, info)
}

func (a *app) restore(file, dataDir, name string) (err error) {
	id, err := nodeID(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dataDir, nodeKeyFile)); errors.Is(err, fs.ErrNotExist) {
		return usagef("%s is not there: a backup holds no keys; put the one of gateway %s there first", filepath.Join(dataDir, nodeKeyFile), id)
	}
	held, err := hold(dataDir, "a gateway", slog.New(slog.NewTextHandler(a.stderr, nil)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	key, err := node.LoadKey(dataDir)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	if err := checkIdentity(f, id, key.Public(), dataDir); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	record, known, err := readClusterRecord(dataDir)
	if err != nil {
		return err
	}
	info, err := raftstore.Restore(filepath.Join(dataDir, stateDir), string(id), f)
	if err != nil {
		return err
	}
	if known { // the other gateways have to join again
		if err := writeClusterRecord(dataDir, clusterRecord{Address: record.Address}); err != nil {
			return err
		}
	}
	if err := systemOwners.hand(dataDir, stateDir, clusterFile, nodeKeyFile); err != nil {
		return fmt.Errorf("restored, but not all of it belongs to the owner of %s: %w", dataDir, err)
	}
	return a.printBackup("restored", file, info)
}

// checkIdentity refuses, before anything is written, a gateway that the mesh of
// a backup does not know by this id and key: it could not start.
func checkIdentity(backup io.Reader, id mesh.NodeID, key mesh.PublicKey, dataDir string) error {
	info, entries, err := raftstore.ReadBackup(backup)
	if err != nil {
		return err
	}
	s := registry.SnapshotOf(entries, info.Version)
	var gateways []string
	var holder mesh.NodeID // of the key
	for _, n := range s.Nodes.All() {
		if n.FollowsNone() {
			gateways = append(gateways, string(n.ID))
		}
		if n.PublicKey == key {
			holder = n.ID
		}
	}
	path := filepath.Join(dataDir, nodeKeyFile)
	switch n := s.Node(id); {
	case !n.FollowsNone():
		return usagef("--id %s: the backup knows no gateway of this name; restore it as one of its gateways, with that one's %s: %s",
			id, nodeKeyFile, strings.Join(gateways, ", "))
	case n.PublicKey == key:
		return nil
	case holder != "":
		return usagef("%s is the key of %s, not of %s: give --id %s if that is a gateway, or put the key of %s there", path, holder, id, holder, id)
	}
	return usagef("%s is not the key of %s in the backup: put the key there that %s had when the backup was made", path, id, id)
}
