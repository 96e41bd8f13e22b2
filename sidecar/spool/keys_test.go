package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func keyFile(t *testing.T, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	return file
}

func TestEncryption(t *testing.T) {
	first, second := keyFile(t, content(1, 32)), keyFile(t, append([]byte(base64.StdEncoding.EncodeToString(content(2, 32))), '\n'))
	secret := bytes.Repeat([]byte("the secret of the house"), 20000)
	r := newRig(t, func(c *Config) { c.KeyFile, c.Segment = first, 100<<10 })
	r.send(origin, secret)
	r.send(origin, secret)
	assert.Greater(t, len(r.files()), 4)
	seen := map[string]bool{}
	for _, file := range r.files() {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.NotContains(t, string(b), "secret")
		for i := 0; i+16 <= len(b); i += 16 {
			seen[string(b[i:i+16])] = true
		}
	}
	assert.True(t, r.List()[0].Encrypted)

	// Without its key it is kept, and said; what has no need of it goes on.
	r.stop()
	r.cfg.KeyFile = second
	r.open()
	r.send(origin, []byte("other"))
	r.start()
	r.eventually("the new one is delivered", func() bool { return r.Status().Delivered == 1 })
	for _, it := range r.List() {
		assert.Equal(t, "held", it.State)
		assert.Contains(t, it.Error, "FL-C341")
		assert.ErrorIs(t, r.Spool.find(it.ID).err, errs.SpoolKey)
	}
	assert.Contains(t, r.Status().Error, "FL-C341")
	assert.Zero(t, r.Status().Quarantined)
	drained := r.Drain(t.Context(), nil)
	assert.Equal(t, 2, drained.Connections, "they are not waited for")

	r.stop()
	r.cfg.OldKeyFiles = []string{first}
	r.open()
	r.start()
	r.eventually("with the old key they are delivered", func() bool { return r.b.hashes()[sha256.Sum256(secret)] == 2 })
}

func TestKeysThatAreNone(t *testing.T) {
	for _, file := range []string{keyFile(t, nil), keyFile(t, content(1, 31)), keyFile(t, []byte("bm8=")), filepath.Join(t.TempDir(), "none")} {
		_, err := loadKeys(file, nil)
		assert.ErrorIs(t, err, errs.KeyUnreadable)
		_, err = loadKeys("", []string{file})
		assert.ErrorIs(t, err, errs.KeyUnreadable)
		_, err = New(Config{Dir: t.TempDir(), KeyFile: file})
		assert.ErrorIs(t, err, errs.KeyUnreadable)
	}
}

// Whoever can write to the directory but has no key can neither change a record, nor move it, nor make one up, even with
// checksums that are right.
func TestForgery(t *testing.T) {
	key := keyFile(t, content(1, 32))
	cfg, id := stored(t, func(c *Config) { c.KeyFile = key }, true, []byte("aaaa"), []byte("bbbb"))
	file := filepath.Join(cfg.Dir, segmentName(id, 0))
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	keys, err := loadKeys(key, nil)
	require.NoError(t, err)
	h, err := parseHead(whole, keys)
	require.NoError(t, err)
	size := record{length: 4}.stored(h.box)
	for name, forge := range map[string]func(b []byte){
		"payload": func(b []byte) { b[recordHead] ^= 1 },
		"tag":     func(b []byte) { b[size-1] ^= 1 },
		"seq":     func(b []byte) { b[19] = 9 },
		"length":  func(b []byte) { copy(b, whole[h.size+size:h.size+2*size]); b[15], b[19] = 0, 1 },
	} {
		b := bytes.Clone(whole)
		rec := b[h.size : h.size+size]
		forge(rec)
		r, _ := peekRecord(rec)
		copy(rec[20:24], sumBytes(checksum(h.sum, rec)))
		_ = r
		_, _, _, err := reopened(t, copyTo(t, cfg, file, b), id)
		assert.ErrorIs(t, err, errs.SpoolCorrupt, name)
	}
}

// No number, and with it no nonce, is used twice in a segment: not for records that had to be written again either.
func TestNoNonceTwice(t *testing.T) {
	disk := tmpfs(t, "400k")
	key := keyFile(t, content(1, 32))
	r := newRig(t, func(c *Config) { c.Dir, c.KeyFile, c.Segment = filepath.Join(disk, "spool"), key, 8<<20 })
	r.b.lose()
	s := r.dial(origin)
	data := content(9, 600<<10)
	go func() { _, _ = s.Write(data) }()
	r.eventually("the disk is full", func() bool { return r.count.writeErrors.Get() > 0 })
	r.eventually("it was tried more than once", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !r.diskFull.IsZero()
	})
	filled := r.Status().Bytes
	require.Error(t, syscallRemount(disk, "1k"), "tmpfs refuses to shrink below what is there")
	require.NoError(t, syscallRemount(disk, "4m"))
	r.eventually("the rest is written", func() bool { return r.Status().Bytes > filled+100<<10 })
	require.NoError(t, s.finish())
	it := r.List()[0]
	shown, err := r.Show(it.ID)
	require.NoError(t, err)
	assert.Equal(t, &Content{To: uint64(len(data)), End: endClean}, shown.Content)
	b, err := os.ReadFile(r.store.segmentPath(it.ID, 0))
	require.NoError(t, err)
	h, err := parseHead(b, r.store.keys)
	require.NoError(t, err)
	last, gap := uint32(0), false
	for at := h.size; at < len(b); {
		rec, ok := peekRecord(b[at:])
		require.True(t, ok)
		require.Greater(t, rec.seq, last)
		gap = gap || rec.seq > last+1
		last = rec.seq
		at += rec.stored(h.box)
	}
	assert.True(t, gap, "the numbers of what failed are not used again")
}
