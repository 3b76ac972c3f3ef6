// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diskSize is how large the disk of a replica is, in bytes. The images are
// sparse files.
const diskSize = 192 << 20

// disk is the file system of one replica: ext4 on an image of its own, so that
// it can hang, be full, or lose power without anyone else being hurt.
type disk struct {
	image, mount string
}

// newDisk makes a disk below dir and mounts it.
func newDisk(ctx context.Context, dir, name string) (*disk, error) {
	d := &disk{image: filepath.Join(dir, name+".img"), mount: filepath.Join(dir, name)}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(diskSize); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.mount, 0o700); err != nil {
		return nil, err
	}
	return d, d.format(ctx)
}

// format makes an empty file system and mounts it.
func (d *disk) format(ctx context.Context) error {
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", d.image); err != nil {
		return err
	}
	return d.mountIt(ctx)
}

// renew replaces the disk by an empty one.
func (d *disk) renew(ctx context.Context) error {
	if err := d.unmount(ctx); err != nil {
		return err
	}
	return d.format(ctx)
}

func (d *disk) mountIt(ctx context.Context) error {
	return command(ctx, "mount", "-t", "ext4", "-o", "loop", d.image, d.mount)
}

func (d *disk) unmount(ctx context.Context) error { return command(ctx, "umount", d.mount) }

// stall lets every write to the disk hang for a time. A process of its own does
// it: whatever happens to this one, the disk goes on.
func (d *disk) stall(ctx context.Context, length time.Duration) error {
	cmd, err := role(ctx, roleStall, stallConfig{d.mount, length})
	if err != nil {
		return err
	}
	cmd.Cancel = func() error { return nil } // it ends soon by itself
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("stall %s: %w: %s", d.mount, err, out)
	}
	return nil
}

// stallConfig is what runStall is told.
type stallConfig struct {
	Mount  string
	Length time.Duration
}

// runStall freezes a file system for a time.
func runStall(cfg stallConfig) error {
	f, err := os.Open(cfg.Mount)
	if err != nil {
		return err
	}
	const freeze, thaw = 0xC0045877, 0xC0045878 // FIFREEZE, FITHAW of linux/fs.h
	if err := unix.IoctlSetInt(int(f.Fd()), freeze, 0); err != nil {
		return fmt.Errorf("freeze %s: %w", cfg.Mount, err)
	}
	<-time.After(cfg.Length)
	if err := unix.IoctlSetInt(int(f.Fd()), thaw, 0); err != nil {
		return fmt.Errorf("thaw %s: %w", cfg.Mount, err)
	}
	return f.Close()
}

// filler is the file that takes the room of a disk that is full.
const filler = "filler"

// fill leaves so many bytes free.
func (d *disk) fill(leave uint64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.mount, &fs); err != nil {
		return err
	}
	free := fs.Bavail * uint64(fs.Bsize)
	if free <= leave {
		return nil
	}
	f, err := os.Create(filepath.Join(d.mount, filler))
	if err != nil {
		return err
	}
	defer f.Close()
	// What the file system needs for the file itself is not known: piece by
	// piece, until nothing more fits.
	for size, piece := int64(0), int64(free-leave); piece >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, size, piece); err != nil {
			piece /= 2
			continue
		}
		if size += piece; uint64(size) >= free-leave {
			break
		}
	}
	return nil
}

// empty undoes fill.
func (d *disk) empty() error { return os.Remove(filepath.Join(d.mount, filler)) }

// cut makes the disk lose its power: what was not synced is gone, and nothing
// works any more until it is mounted anew.
func (d *disk) cut() error {
	f, err := os.Open(d.mount)
	if err != nil {
		return err
	}
	defer f.Close()
	const shutdown = 0x8004587D // EXT4_IOC_SHUTDOWN of linux/ext4.h
	how := uint32(2)            // EXT4_GOING_FLAGS_NOLOGFLUSH
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return fmt.Errorf("cut the power of %s: %w", d.mount, errno)
	}
	return nil
}

// powerOn mounts a disk that was cut.
func (d *disk) powerOn(ctx context.Context) error {
	if err := d.unmount(ctx); err != nil {
		return err
	}
	return d.mountIt(ctx)
}

// command runs a program to its end.
func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, args, err, out)
	}
	return nil
}
