package admin_test

import (
	"encoding/json"
	"fmt"
	"iter"
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/gateway/admin"
)

var next = regexp.MustCompile(`^<(.*)>; rel="next"$`)

// However the pages are cut, together they are the list, in its order.
func TestPagesAreTheList(t *testing.T) {
	var list []admin.Stream
	a := newAPI(t, func(c *admin.Config) {
		c.RequestsPerMinute = 1 << 30
		c.Streams = func() iter.Seq[admin.Stream] {
			return func(yield func(admin.Stream) bool) {
				for _, i := range rand.Perm(len(list)) {
					if !yield(list[i]) {
						return
					}
				}
			}
		}
	})
	h, err := admin.Handler(a.cfg)
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		list = nil
		n := rapid.IntRange(0, 50).Draw(t, "streams")
		for i := range n { // many of the same moment
			list = append(list, admin.Stream{ID: strconv.Itoa(i), Tunnel: "t" + strconv.Itoa(i%3), Since: moment.Add(time.Duration(i/10) * time.Nanosecond), Tenant: []string{"a", "b"}[i%2]})
		}
		tenant := rapid.SampledFrom([]string{"", "a"}).Draw(t, "tenant")
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		path, seen, before := fmt.Sprintf("/api/streams?limit=%d&tenant=%s", limit, tenant), map[string]bool{}, time.Time{}
		for path != "" {
			w := local(h, "GET", path, "")
			require.Equal(t, 200, w.Code, w.Body.String())
			var page []admin.Stream
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &page))
			for _, s := range page {
				assert.False(t, seen[s.ID])
				seen[s.ID] = true
				assert.False(t, s.Since.Before(before))
				before = s.Since
			}
			path = ""
			if m := next.FindStringSubmatch(w.Header().Get("Link")); m != nil {
				require.Len(t, page, limit)
				path = m[1]
			}
			want := n
			if tenant != "" {
				want = (n + 1) / 2
			}
			assert.Equal(t, strconv.Itoa(want), w.Header().Get("X-Total-Count"))
			if path == "" {
				assert.Len(t, seen, want)
			}
		}
	})
}

// A page follows another although the thing that the last one ended with is gone.
func TestPagesOfAListThatChanges(t *testing.T) {
	tunnels := []admin.Tunnel{{ID: "a", Since: moment}, {ID: "b", Since: moment}, {ID: "c", Since: moment.Add(1)}}
	a := newAPI(t, func(c *admin.Config) {
		c.Tunnels = func() iter.Seq[admin.Tunnel] {
			return func(yield func(admin.Tunnel) bool) {
				for _, t := range tunnels {
					if !yield(t) {
						return
					}
				}
			}
		}
	})
	h, err := admin.Handler(a.cfg)
	require.NoError(t, err)
	w := local(h, "GET", "/api/tunnels?limit=2", "")
	m := next.FindStringSubmatch(w.Header().Get("Link"))
	require.NotNil(t, m)
	tunnels = tunnels[2:]
	var page []admin.Tunnel
	require.NoError(t, json.Unmarshal(local(h, "GET", m[1], "").Body.Bytes(), &page))
	require.Len(t, page, 1)
	assert.Equal(t, "c", page[0].ID)
}

// BenchmarkStreams is a page of 100,000 streams.
func BenchmarkStreams(b *testing.B) {
	streams := make([]admin.Stream, 100_000)
	for i := range streams {
		streams[i] = admin.Stream{ID: strconv.Itoa(i), Tunnel: "t", Since: moment.Add(time.Duration(i*7919%100_000) * time.Millisecond)}
	}
	a := &api{clock: moment}
	cfg := full(a)
	cfg.RequestsPerMinute = 1 << 30
	cfg.Streams = func() iter.Seq[admin.Stream] {
		return func(yield func(admin.Stream) bool) {
			for _, s := range streams {
				if !yield(s) {
					return
				}
			}
		}
	}
	h, err := admin.Handler(cfg)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if w := local(h, "GET", "/api/streams", ""); w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}
