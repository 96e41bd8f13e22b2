package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// FuzzSegment: whatever is in a file, reading ends, with bytes or an error that says what it is.
func FuzzSegment(f *testing.F) {
	cfg, id := stored(f, nil, true, []byte("first\n"), []byte("second\n"))
	whole, err := os.ReadFile(filepath.Join(cfg.Dir, segmentName(id, 0)))
	require.NoError(f, err)
	f.Add(whole, []byte(nil))
	f.Add(whole[:len(whole)-30], []byte("garbage"))
	f.Add([]byte(magic), whole)
	keys := &keyring{keys: map[string][]byte{}}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first) == 0 {
			return
		}
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, segmentName(id, 0)), first, 0o600))
		v := view{dir: dir, id: id, keys: keys, segs: []segment{{0, int64(len(first))}}}
		if len(second) > 0 {
			require.NoError(t, os.WriteFile(filepath.Join(dir, segmentName(id, 13)), second, 0o600))
			v.segs = append(v.segs, segment{13, int64(len(second))})
		}
		for _, salved := range []bool{false, true} {
			v.salved = salved
			r := newReader(v, place{})
			got, err := io.ReadAll(r)
			at := r.close()
			require.Equal(t, uint64(len(got)), at.offset)
			if err != nil && !errors.Is(err, errs.SpoolCorrupt) && !errors.Is(err, errs.SpoolKey) {
				t.Fatal(err)
			}
			if err == nil {
				require.NotEmpty(t, r.end)
			}
			for _, line := range []bool{false, true} {
				if at, err := seek(v, uint64(len(got))/2, line); err == nil {
					rest := newReader(v, at)
					more, _ := io.ReadAll(rest)
					rest.close()
					require.True(t, bytes.HasSuffix(got, more), "seeking reads the same bytes")
				}
			}
		}
	})
}

func FuzzProgress(f *testing.F) {
	p := progress{turn: 4, acked: 77}
	f.Add(append(p.encode(), p.encode()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := decodeProgress(b)
		if got.turn != 0 {
			require.Contains(t, string(b), string(got.encode()[:32]))
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add(segmentName(1, 2))
	f.Add("0000000000000001.ack")
	f.Fuzz(func(t *testing.T, name string) {
		id, base, isSegment, ok := parseName(name)
		switch {
		case !ok:
		case isSegment:
			require.Equal(t, name, segmentName(id, base))
		default:
			require.Equal(t, name, filepath.Base(progressFile("", id)))
		}
	})
}
