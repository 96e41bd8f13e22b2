package spool

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
)

// Verifies: R5.9
func TestWhatIsAcknowledgedIsOnDiskAndIsDelivered(t *testing.T) {
	for _, fsync := range []string{FsyncAlways, FsyncInterval, FsyncNever} {
		for _, size := range []int{1, 100, maxPayload, maxPayload + 1, 3 << 20} {
			r := newRig(t, func(c *Config) { c.Fsync, c.Segment, c.Interval = fsync, 256<<10, 5*time.Millisecond })
			r.b.lose()
			r.start()
			data := content(uint64(size), size)
			rec := r.send(origin, data)
			assert.Equal(t, uint64(size), rec.Bytes)
			it, err := r.Show(rec.ID)
			require.NoError(t, err)
			assert.Equal(t, &Content{To: uint64(size), End: endClean}, it.Content)
			r.b.find(r.Spool)
			r.eventually("delivered", func() bool { return r.Status().Delivered == 1 })
			got := r.b.arrivals()
			require.Len(t, got, 1)
			assert.Equal(t, sha256.Sum256(data), sha256.Sum256(got[0].bytes()))
			assert.Equal(t, link.OpenRequest{Route: origin.Route, Priority: origin.Priority, Peer: origin.Peer, Trace: origin.Trace}, got[0].req)
			r.eventually("nothing is left", func() bool { return r.Status().Bytes == 0 && len(r.files()) == 0 })
			r.stop()
		}
	}
}

func TestTheDirectoryIsPrivate(t *testing.T) {
	r := newRig(t, nil)
	r.send(origin, []byte("x"))
	for path, mode := range map[string]os.FileMode{r.cfg.Dir: 0o700, r.files()[0]: 0o600, filepath.Join(r.cfg.Dir, quarantineDir): 0o700} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm(), path)
	}
}
