package spool

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Verifies: R3.3
func TestAFullSpoolRefusesAndPushesBack(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Size = 1 << 20 })
	r.b.lose()
	r.start()
	data := content(1, 3<<20)
	s := r.dial(origin)
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write(data)
		wrote <- err
	}()
	r.eventually("it is not read from", func() bool { l := r.List(); return len(l) == 1 && l[0].Full })
	assert.LessOrEqual(t, r.Status().Bytes, int64(1<<20))
	assert.Greater(t, r.Status().Bytes, int64(1<<20-2*leastFree))
	late := r.dial(origin)
	assert.ErrorIs(t, <-late.done, errs.SpoolFull)
	_, err := late.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "reset")
	var text bytes.Buffer
	r.cfg.Metrics.WritePrometheus(&text)
	assert.Contains(t, text.String(), fmt.Sprintf("fairlead_sidecar_spool_bytes %d\n", r.Status().Bytes))
	assert.Contains(t, text.String(), "fairlead_sidecar_spool_size_bytes 1048576\n")
	assert.Contains(t, text.String(), "fairlead_sidecar_spool_refused_total 1\n")
	assert.Contains(t, text.String(), "fairlead_sidecar_spool_connections 1\n")
	assert.NotContains(t, text.String(), "fairlead_sidecar_spool_oldest_seconds 0\n")
	r.b.find(r.Spool)
	require.NoError(t, <-wrote)
	require.NoError(t, s.finish())
	require.NoError(t, <-s.done)
	r.eventually("all of it arrives", func() bool { return r.b.hashes()[sha256.Sum256(data)] == 1 })
}

// Connections that stay open and are delivered keep some bytes to send again. With the spool full of nothing else, those go.
func TestDeliveredBytesDoNotFillTheSpool(t *testing.T) {
	for _, mode := range []string{ResumeOffset, ResumeStart} {
		r := newRig(t, func(c *Config) { c.Size, c.Overlap, c.Segment, c.Resume = 1<<20, 256<<10, 64<<10, mode })
		r.start()
		var all []*sender
		for i := range 5 {
			all = append(all, r.dial(origin))
			r.eventually("it is taken", func() bool { return r.Status().Receiving == i+1 })
		}
		for i, s := range all {
			_, err := s.Write(content(uint64(i), 600<<10))
			require.NoError(t, err)
		}
		for _, s := range all {
			require.NoError(t, s.finish())
			require.NoError(t, <-s.done)
		}
		r.eventually("all arrive", func() bool { return len(r.b.hashes()) == 5 })
		for i := range 5 {
			assert.Equal(t, 1, r.b.hashes()[sha256.Sum256(content(uint64(i), 600<<10))])
		}
		assert.Positive(t, r.count.released.Get())
		r.stop()
	}
}

// The oldest of the lowest priority goes first, whole; never one above the newcomer.
func TestDropOldest(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Size, c.Full = 1<<20, FullDropOldest })
	r.b.lose()
	r.start()
	names := func() string {
		var all []string
		for _, it := range r.List() {
			all = append(all, it.Peer)
		}
		return strings.Join(all, " ")
	}
	send := func(name string, prio link.Priority) {
		o := origin
		o.Peer, o.Priority = name, prio
		r.send(o, content(uint64(name[0]), 300<<10))
	}
	send("high-a", link.High)
	send("low-b", link.Low)
	send("low-c", link.Low)
	assert.Equal(t, "high-a low-b low-c", names())
	send("normal-d", link.Normal)
	assert.Equal(t, "high-a normal-d low-c", names())
	send("low-e", link.Low)
	assert.Equal(t, "high-a normal-d low-e", names())
	send("normal-f", link.Normal)
	assert.Equal(t, "high-a normal-d normal-f", names())
	assert.Equal(t, uint64(3), r.Status().Dropped)
	assert.Greater(t, r.count.droppedBytes.Get(), uint64(900<<10))
	assert.Contains(t, r.log.String(), "FL-S443")

	o := origin
	o.Priority = link.Low // nothing below or beside it but itself: it has to wait
	s := r.dial(o)
	go func() { _, _ = s.Write(make([]byte, 2<<20)) }()
	r.eventually("it waits", func() bool {
		for _, it := range r.List() {
			if it.Full {
				return true
			}
		}
		return false
	})
	assert.Equal(t, uint64(3), r.Status().Dropped)
	send("high-g", link.High)
	assert.ErrorIs(t, <-s.done, errs.SpoolDropped, "its application learns that it was dropped")
	_, err := s.Read(make([]byte, 1))
	assert.Error(t, err)
}

func TestTooManyConnections(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Connections, c.Open = 3, 2 })
	r.b.lose()
	first, second := r.dial(origin), r.dial(origin)
	r.eventually("both are taken", func() bool { return r.Status().Receiving == 2 })
	assert.ErrorIs(t, <-r.dial(origin).done, errs.SpoolFull)
	for _, s := range []*sender{first, second} {
		_, err := io.WriteString(s, "x")
		require.NoError(t, err)
		require.NoError(t, s.finish())
		require.NoError(t, <-s.done)
	}
	r.send(origin, []byte("third"))
	assert.ErrorIs(t, <-r.dial(origin).done, errs.SpoolFull)
	assert.Equal(t, 3, r.Status().Connections)
}

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounting needs rights that this user has not: %v", err)
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, 0)) })
	return dir
}

// A disk that is full in the middle of a record: nothing half stays, applications are pushed back, and all goes on when there
// is space.
func TestAFullDisk(t *testing.T) {
	for _, key := range []func(*Config){nil, encrypted(t)} {
		disk := tmpfs(t, "1m")
		r := newRig(t, func(c *Config) {
			c.Dir, c.Fsync = filepath.Join(disk, "spool"), FsyncAlways
			if key != nil {
				key(c)
			}
		})
		r.b.lose()
		r.start()
		filler := filepath.Join(disk, "other")
		require.NoError(t, os.WriteFile(filler, make([]byte, 200<<10), 0o600))
		data := content(3, 4<<20)
		s := r.dial(origin)
		wrote := make(chan error, 1)
		go func() {
			_, err := s.Write(data)
			wrote <- err
		}()
		r.eventually("the disk is full", func() bool { return strings.Contains(r.Status().Error, "FL-S440") })
		assert.ErrorIs(t, <-r.dial(origin).done, errs.SpoolFull)
		id := r.List()[0].ID
		it, err := r.Show(id)
		require.NoError(t, err)
		assert.Equal(t, "open", it.Content.End, "what is there is whole")
		assert.Empty(t, it.Content.Error)
		assert.Positive(t, it.Content.To)
		select {
		case err := <-wrote:
			t.Fatalf("the application was not pushed back: %v", err)
		default:
		}
		require.NoError(t, os.Remove(filler))
		r.b.find(r.Spool)
		require.NoError(t, <-wrote)
		require.NoError(t, s.finish())
		require.NoError(t, <-s.done)
		r.eventually("all of it arrives", func() bool { return r.b.hashes()[sha256.Sum256(data)] == 1 })
		r.eventually("it is over", func() bool { return r.Status().Error == "" })
		assert.Contains(t, r.log.String(), "the disk has space again")
		assert.Equal(t, 1, strings.Count(r.log.String(), "the disk is full"), "said once")
		r.stop()
	}
}

// A stop while the disk is full: the application is told, and what is on disk is whole.
func TestAStopWithAFullDisk(t *testing.T) {
	disk := tmpfs(t, "600k")
	r := newRig(t, func(c *Config) { c.Dir = filepath.Join(disk, "spool") })
	r.b.lose()
	data := content(4, 2<<20)
	s := r.dial(origin)
	go func() { _, _ = s.Write(data) }()
	r.eventually("the disk is full", func() bool { return strings.Contains(r.Status().Error, "FL-S440") })
	r.restart()
	assert.ErrorIs(t, <-s.done, errs.ShuttingDown)
	id := r.List()[0].ID
	it, err := r.Show(id)
	require.NoError(t, err)
	assert.Equal(t, endCut, it.Content.End)
	r.b.find(r.Spool)
	r.start()
	r.eventually("it is delivered as far as it came, though progress has no space", func() bool {
		return r.b.hashes()[sha256.Sum256(data[:it.Content.To])] == 1
	})
}

func TestADirectoryThatCannotBeUsed(t *testing.T) {
	ro := t.TempDir()
	if err := syscall.Mount("tmpfs", ro, "tmpfs", syscall.MS_RDONLY, "size=64k"); err != nil {
		t.Skipf("mounting needs rights that this user has not: %v", err)
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(ro, 0)) })
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	r := newRig(t, nil)
	for _, dir := range []string{ro, filepath.Join(ro, "sub"), file, filepath.Join(file, "sub")} {
		cfg := r.cfg
		cfg.Dir = dir
		_, err := New(cfg)
		assert.ErrorIs(t, err, errs.SpoolUnusable, dir)
		assert.ErrorContains(t, err, dir)
	}
	_, err := Offline(filepath.Join(t.TempDir(), "none"), "", nil)
	assert.ErrorIs(t, err, errs.SpoolUnusable)
}

func TestChoicesAreChecked(t *testing.T) {
	for _, c := range []Config{{Full: "maybe"}, {Fsync: "sometimes"}, {Resume: "here"}, {Size: 1 << 20, Overlap: 1 << 19}, {Size: 1000}} {
		c.Dir = t.TempDir()
		_, err := New(c)
		assert.ErrorIs(t, err, errs.ConfigInvalid)
	}
}

// An application that resets is no end: what came is delivered, and the receipt says so.
func TestAnApplicationThatResets(t *testing.T) {
	r := newRig(t, nil)
	s := r.dial(origin)
	_, err := io.WriteString(s, "so far")
	require.NoError(t, err)
	r.kept(6)
	require.NoError(t, s.Conn.(*net.TCPConn).SetLinger(0))
	require.NoError(t, s.Close())
	assert.ErrorIs(t, <-s.done, errs.ConnectionBroken)
	assert.Equal(t, uint64(6), s.rec.Bytes)
	r.start()
	r.eventually("it arrives", func() bool { return r.b.hashes()[sha256.Sum256([]byte("so far"))] == 1 })
}
