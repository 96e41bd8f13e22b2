package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func syscallRemount(dir, size string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size)
}

func (r *rig) ask(method, path string, into any) int {
	r.t.Helper()
	mux := http.NewServeMux()
	r.Routes(mux)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	req, err := http.NewRequestWithContext(r.t.Context(), method, srv.URL+path, nil)
	require.NoError(r.t, err)
	resp, err := srv.Client().Do(req)
	require.NoError(r.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	if into != nil {
		require.NoError(r.t, json.Unmarshal(b, into), string(b))
	}
	return resp.StatusCode
}

// damage changes a byte of the payload, and returns what is valid before it.
func (r *rig) damage(id ID, at string) {
	r.t.Helper()
	file := r.store.segmentPath(id, 0)
	b, err := os.ReadFile(file)
	require.NoError(r.t, err)
	changed := bytes.Replace(b, []byte(at), bytes.ToUpper([]byte(at)), 1)
	require.NotEqual(r.t, b, changed)
	require.NoError(r.t, os.WriteFile(file, changed, 0o600))
}

// A damaged connection is put aside and said; the rest goes on. A person may have what is valid delivered, or drop it.
func TestQuarantine(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Segment = 64 << 10 })
	s := r.dial(origin)
	_, err := io.WriteString(s, "first\n")
	require.NoError(t, err)
	r.kept(6)
	_, err = io.WriteString(s, "second\n")
	require.NoError(t, err)
	r.kept(13)
	require.NoError(t, s.finish())
	require.NoError(t, <-s.done)
	bad := r.List()[0].ID
	r.send(origin, []byte("good"))
	head := r.send(origin, []byte("its head goes"))
	r.damage(bad, "second")
	r.damage(head.ID, `"route"`)
	r.restart()
	r.start()
	r.eventually("the good one is delivered", func() bool { return r.Status().Delivered == 1 })
	r.eventually("the others are put aside", func() bool { return r.Status().Quarantined == 2 })
	assert.Zero(t, r.Status().Connections)
	assert.Contains(t, r.log.String(), "FL-S441")
	assert.Contains(t, r.Status().Error, "FL-S441")
	assert.Equal(t, uint64(2), r.count.quarantined.Get(), "one at the start, one while it was delivered")
	kept, err := filepath.Glob(filepath.Join(r.cfg.Dir, quarantineDir, "*.log"))
	require.NoError(t, err)
	assert.Len(t, kept, 2)
	r.eventually("nothing else is left", func() bool { return len(r.files()) == 0 }) // a segment goes after its last connection

	r.restart()
	r.start()
	assert.Equal(t, 2, r.Status().Quarantined, "they stay there")
	var it Item
	assert.Equal(t, 200, r.ask("GET", "/api/spool/"+bad.String(), &it))
	assert.Equal(t, "quarantined", it.State)
	assert.Equal(t, endDamaged, it.Content.End)
	assert.Contains(t, it.Content.Error, "checksum")

	assert.Equal(t, 200, r.ask("POST", "/api/spool/"+bad.String()+"/retry", nil))
	r.eventually("what is valid arrives", func() bool { return r.b.hashes()[sha256.Sum256([]byte("first\n"))] == 1 })
	r.eventually("and what is left is back", func() bool { return r.Status().Quarantined == 2 && r.Status().Connections == 0 })
	assert.Equal(t, 500, r.ask("POST", "/api/spool/"+head.ID.String()+"/retry", nil), "nobody knows its route")
	assert.Equal(t, 200, r.ask("DELETE", "/api/spool/"+bad.String(), nil))
	assert.Equal(t, 200, r.ask("DELETE", "/api/spool/"+head.ID.String(), nil))
	assert.Equal(t, 404, r.ask("DELETE", "/api/spool/"+bad.String(), nil))
	assert.Zero(t, r.Status().Quarantined)
	assert.Zero(t, r.Status().Bytes)
}

func TestAdminAPI(t *testing.T) {
	r := newRig(t, nil)
	r.b.lose()
	r.start()
	one, two := r.send(origin, []byte("one")), r.send(origin, []byte("two"))
	var l Listing
	assert.Equal(t, 200, r.ask("GET", "/api/spool", &l))
	require.Len(t, l.Connections, 2)
	assert.Equal(t, one.ID, l.Connections[0].ID)
	assert.Equal(t, 2, l.Status.Connections)
	assert.Equal(t, r.cfg.Dir, l.Status.Dir)
	assert.Equal(t, l.Connections[0].Time.UTC(), l.Status.Oldest.UTC())
	var it Item
	assert.Equal(t, 200, r.ask("GET", "/api/spool/"+two.ID.String(), &it))
	assert.Equal(t, &Content{To: 3, End: endClean}, it.Content)
	assert.Equal(t, 404, r.ask("GET", "/api/spool/0000000000000001", nil))
	assert.Equal(t, 404, r.ask("POST", "/api/spool/0000000000000001/retry", nil))
	assert.Equal(t, 400, r.ask("GET", "/api/spool/1", nil))
	assert.Equal(t, 400, r.ask("GET", "/api/spool/..%2f..%2fetc", nil))
	assert.Equal(t, 200, r.ask("DELETE", "/api/spool/"+one.ID.String(), nil))
	assert.Equal(t, uint64(1), r.Status().Dropped)
	r.b.find(r.Spool)
	assert.Contains(t, []int{200, 404}, r.ask("POST", "/api/spool/"+two.ID.String()+"/retry", nil))
	r.eventually("the other is delivered", func() bool { return r.b.hashes()[sha256.Sum256([]byte("two"))] == 1 })
	assert.Len(t, r.b.arrivals(), 1)
}

// A connection may be dropped in any state.
func TestDropWhileItIsReceivedAndDelivered(t *testing.T) {
	r := newRig(t, nil).start()
	s := r.dial(origin)
	_, err := io.WriteString(s, "x")
	require.NoError(t, err)
	r.eventually("it is being delivered", func() bool { a := r.b.arrivals(); return len(a) == 1 && a[0].len() == 1 })
	require.NoError(t, r.Drop(r.List()[0].ID))
	assert.Error(t, <-s.done)
	_, err = s.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "reset")
	assert.Zero(t, r.Status().Bytes)
	assert.Empty(t, r.files())
	assert.Empty(t, r.b.hashes())
}
