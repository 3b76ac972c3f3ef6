// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store/raftstore"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// backupOutput is the JSON form of what a backup holds.
type backupOutput struct {
	File    string    `json:"file"`
	Time    time.Time `json:"time"`
	Version uint64    `json:"version"`
	Keys    int       `json:"keys"`
}

func (a *app) backupCommand() *cobra.Command {
	return a.onGateway("backup FILE", "write the state of the mesh to a file",
		"backup writes the whole state at one moment, while the mesh goes on, and checks it. The file\n"+
			"holds no private keys: keep "+nodeKeyFile+" of a gateway's data directory as well. It holds the\n"+
			"hashes of tokens and the secret of TURN credentials: keep it as you keep keys.\n"+
			"A file that is there is replaced once the new one is whole.",
		args(cobra.ExactArgs(1), "the file to write"), a.backup)
}

// nodeKeyFile is the identity of a gateway inside its data directory.
const nodeKeyFile = "node.key"

// backup writes beside the file first, so that a backup that breaks off does not
// cost the last good one.
func (a *app) backup(ctx context.Context, c *peer.Public, given []string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(given[0]), ".backup-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := fetchBackup(ctx, c, f); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	info, err := raftstore.Verify(f)
	if err != nil {
		return fmt.Errorf("what arrived is not whole, try again: %w", err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), given[0]); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return a.printBackup("backed up to", given[0], info)
}

func fetchBackup(ctx context.Context, c *peer.Public, w io.Writer) error {
	stream, err := c.Cluster().Backup(ctx, connect.NewRequest(&meshgatev1.BackupRequest{}))
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

func (a *app) restore(file, dataDir, name string) error {
	id, err := nodeID(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dataDir, nodeKeyFile)); errors.Is(err, fs.ErrNotExist) {
		return usagef("%s is not there: a backup holds no keys; put the one of gateway %s there first", filepath.Join(dataDir, nodeKeyFile), id)
	}
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
		if isGateway(n) {
			gateways = append(gateways, string(n.ID))
		}
		if n.PublicKey == key {
			holder = n.ID
		}
	}
	path := filepath.Join(dataDir, nodeKeyFile)
	switch n := s.Node(id); {
	case n == nil || !isGateway(n):
		return usagef("--id %s: the backup knows no gateway of this name; restore it as one of its gateways, with that one's %s: %s",
			id, nodeKeyFile, strings.Join(gateways, ", "))
	case n.PublicKey == key:
		return nil
	case holder != "":
		return usagef("%s is the key of %s, not of %s: give --id %s if that is a gateway, or put the key of %s there", path, holder, id, holder, id)
	}
	return usagef("%s is not the key of %s in the backup: put the key there that %s had when the backup was made", path, id, id)
}

// isGateway reports whether n is one, be it alone or one of several.
func isGateway(n *mesh.Node) bool {
	return n.HasFeature(v1.Feature_MEMBERSHIP) || n.HasFeature(v1.Feature_STORAGE_PROVIDER)
}
