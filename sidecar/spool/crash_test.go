package spool

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

// stored makes the files of one connection: parts, each appended by itself, and the end if clean. It returns the directory.
func stored(t testing.TB, change func(*Config), clean bool, parts ...[]byte) (cfg Config, id ID) {
	r := newRig(t, change)
	s := r.dial(origin)
	sum := uint64(0)
	for _, p := range parts {
		_, err := s.Write(p)
		require.NoError(t, err)
		sum += uint64(len(p))
		r.kept(sum)
	}
	if clean {
		require.NoError(t, s.finish())
		require.NoError(t, <-s.done)
	}
	id = r.List()[0].ID
	r.stop()
	if !clean {
		require.Error(t, <-s.done)
	}
	return r.cfg, id
}

// reopened opens a spool's directory as the next process would, and reads everything of a connection.
func reopened(t testing.TB, cfg Config, id ID) (data []byte, it Item, end string, readErr error) {
	t.Helper()
	cfg.Metrics = metrics.NewSet()
	s, err := New(cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close(t.Context())) }()
	e := s.find(id)
	if e == nil {
		return nil, Item{}, "", errs.New(errs.NotFound, "gone")
	}
	s.mu.Lock()
	it = s.item(e)
	v := s.view(e)
	s.mu.Unlock()
	if e.aside || e.state == held {
		return nil, it, "", e.err
	}
	r := newReader(v, place{base: v.segs[0].base, offset: v.segs[0].base})
	defer r.close()
	data, err = io.ReadAll(r)
	return data, it, r.end, err
}

// copyTo makes a copy of a spool's directory with one file changed. Each call makes the last one's copy anew.
func copyTo(t testing.TB, cfg Config, file string, content []byte) Config {
	t.Helper()
	dir := cfg.Dir + "-changed"
	for _, pattern := range []string{"*.*", quarantineDir + "/*.*"} {
		old, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		for _, name := range old {
			require.NoError(t, os.Remove(name))
		}
	}
	require.NoError(t, os.MkdirAll(dir, 0o700))
	names, err := filepath.Glob(filepath.Join(cfg.Dir, "*.*"))
	require.NoError(t, err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		if name == file {
			b = content
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, 0o600))
	}
	cfg.Dir = dir
	return cfg
}

// encrypted makes a key file.
func encrypted(t testing.TB) func(*Config) {
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, content(99, keySize), 0o600))
	return func(c *Config) { c.KeyFile = file }
}

// A file that ends anywhere, as a crash may leave it: what is read is what the records before that hold.
func TestALogThatIsCutAnywhere(t *testing.T) {
	parts := [][]byte{[]byte("first\n"), []byte("second, a bit longer\n"), []byte("third\n")}
	all := bytes.Join(parts, nil)
	for name, change := range map[string]func(*Config){"plain": nil, "encrypted": encrypted(t)} {
		for _, clean := range []bool{true, false} {
			cfg, id := stored(t, change, clean, parts...)
			file := filepath.Join(cfg.Dir, segmentName(id, 0))
			whole, err := os.ReadFile(file)
			require.NoError(t, err)
			seen := map[int]bool{}
			for cut := range len(whole) {
				got, it, end, err := reopened(t, copyTo(t, cfg, file, whole[:cut]), id)
				switch {
				case cut == 0:
					require.ErrorIs(t, err, errs.NotFound, "an empty file says nothing")
				case err != nil:
					require.ErrorIs(t, err, errs.SpoolCorrupt, "%s, cut at %d", name, cut)
					require.Equal(t, "quarantined", it.State)
					require.Empty(t, seen, "only while the head is not whole")
				default:
					require.True(t, bytes.HasPrefix(all, got), "%s, cut at %d: %q", name, cut, got)
					require.Contains(t, []string{endCut, endTorn}, end)
					seen[len(got)] = true
				}
			}
			want := map[int]bool{0: true, 6: true, 27: true}
			if clean {
				want[33] = true
			}
			require.Equal(t, want, seen, "%s: records are read whole or not at all", name)
			got, _, end, err := reopened(t, cfg, id)
			require.NoError(t, err)
			require.Equal(t, all, got)
			require.Equal(t, map[bool]string{true: endClean, false: endCut}[clean], end)
		}
	}
}

// A byte that changes anywhere: never are other bytes read than were written, and never is a part taken for the whole without
// a word.
func TestALogWithAChangedByteAnywhere(t *testing.T) {
	parts := [][]byte{[]byte("first\n"), []byte("second, a bit longer\n"), []byte("third\n")}
	all := bytes.Join(parts, nil)
	for name, change := range map[string]func(*Config){"plain": nil, "encrypted": encrypted(t)} {
		cfg, id := stored(t, change, true, parts...)
		file := filepath.Join(cfg.Dir, segmentName(id, 0))
		whole, err := os.ReadFile(file)
		require.NoError(t, err)
		corrupt := 0
		for at := range len(whole) {
			changed := bytes.Clone(whole)
			changed[at] ^= byte(1 << (at % 8))
			got, _, end, err := reopened(t, copyTo(t, cfg, file, changed), id)
			if err != nil {
				require.ErrorIs(t, err, errs.SpoolCorrupt, "%s, byte %d", name, at)
				require.True(t, bytes.HasPrefix(all, got))
				corrupt++
				continue
			}
			require.Equal(t, all, got, "%s, byte %d", name, at)
			require.Equal(t, endTorn, end, "%s, byte %d: the end's own record", name, at)
		}
		overhead := 0
		if change != nil {
			overhead = tagSize
		}
		require.Equal(t, len(whole)-recordHead-overhead, corrupt, name)
	}
}

// A connection that was cut has no end to vouch for it: what is valid before the damage is read, and the damage is said.
func TestDamageInAConnectionThatWasCut(t *testing.T) {
	cfg, id := stored(t, nil, false, []byte("first\n"), []byte("second\n"), []byte("third\n"))
	file := filepath.Join(cfg.Dir, segmentName(id, 0))
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	changed := bytes.Replace(whole, []byte("second"), []byte("sECOND"), 1)
	got, _, end, err := reopened(t, copyTo(t, cfg, file, changed), id)
	require.NoError(t, err)
	require.Equal(t, "first\n", string(got))
	require.Equal(t, endDamaged, end)
}

// Damage of many segments at once, and of the files' number.
func TestManySegmentsAndWhatCanBecomeOfThem(t *testing.T) {
	small := func(c *Config) { c.Segment = 100 }
	var parts [][]byte
	for i := range 8 {
		parts = append(parts, content(uint64(i), 150))
	}
	all := bytes.Join(parts, nil)
	cfg, id := stored(t, small, true, parts...)
	got, it, end, err := reopened(t, cfg, id)
	require.NoError(t, err)
	require.Equal(t, all, got)
	require.Equal(t, endClean, end)
	require.Positive(t, it.Bytes)
	names, err := filepath.Glob(filepath.Join(cfg.Dir, "*.log"))
	require.NoError(t, err)
	require.Len(t, names, 9)
	rapid.Check(t, func(rt *rapid.T) {
		victim := rapid.IntRange(0, len(names)-1).Draw(rt, "file")
		b, err := os.ReadFile(names[victim])
		require.NoError(rt, err)
		switch rapid.IntRange(0, 3).Draw(rt, "how") {
		case 0:
			b = b[:rapid.IntRange(0, len(b)-1).Draw(rt, "cut")]
		case 1:
			b[rapid.IntRange(0, len(b)-1).Draw(rt, "at")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "with"))
		case 2:
			b = append(b, rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(rt, "more")...)
		case 3:
			b, err = os.ReadFile(names[rapid.IntRange(0, len(names)-1).Draw(rt, "other")])
			require.NoError(rt, err)
		}
		changed := copyTo(t, cfg, names[victim], b)
		got, _, end, err := reopened(t, changed, id)
		if err != nil {
			require.ErrorIs(rt, err, errs.SpoolCorrupt)
			require.True(rt, bytes.HasPrefix(all, got))
			return
		}
		if victim < len(names)-1 {
			require.Equal(rt, all, got, "only the very same file is taken for it")
		}
		require.True(rt, bytes.HasPrefix(all, got))
		require.GreaterOrEqual(rt, len(got), 8*150, "the last file holds the end alone")
		require.NotEmpty(rt, end)
	})
	for i, name := range names[1 : len(names)-1] {
		dir := copyTo(t, cfg, "", nil)
		require.NoError(t, os.Remove(filepath.Join(dir.Dir, filepath.Base(name))))
		got, _, _, err := reopened(t, dir, id)
		require.ErrorIs(t, err, errs.SpoolCorrupt, "a gap")
		require.Len(t, got, 150*(i+1))
	}
}

func TestProgressSurvivesATornWrite(t *testing.T) {
	dir := t.TempDir()
	var p progress
	for i := range 10 {
		p.acked = uint64(i)
		require.NoError(t, p.write(dir, 7))
	}
	whole, err := os.ReadFile(progressFile(dir, 7))
	require.NoError(t, err)
	require.Len(t, whole, 2*slotSize)
	require.Equal(t, p, decodeProgress(whole))
	for at := range whole {
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		got := decodeProgress(b)
		require.Contains(t, []uint64{8, 9}, got.acked, "byte %d", at)
	}
	for n := range whole {
		assert.LessOrEqual(t, decodeProgress(whole[:n]).acked, uint64(9))
	}
	require.NoError(t, os.WriteFile(progressFile(dir, 8), bytes.Repeat([]byte{1}, 5000), 0o600))
	require.Zero(t, readProgress(dir, 8))
	require.Zero(t, readProgress(dir, 9))
}
