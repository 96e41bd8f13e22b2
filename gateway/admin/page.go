package admin

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"fairlead/shared/errs"
)

// place is where something stands in a list: lists are ordered by time, then by names, so that a page follows another
// although things come and go.
type place struct {
	Since int64  `json:"s"` // ns
	A     string `json:"a"`
	B     string `json:"b,omitempty"`
}

func placeOf(since time.Time, a, b string) place { return place{since.UnixNano(), a, b} }

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.Since, o.Since), cmp.Compare(p.A, o.A), cmp.Compare(p.B, o.B))
}

// cursor tells a place in the query of the next page.
func (p place) cursor() string {
	raw, _ := json.Marshal(p) // cannot fail: a number and texts
	return base64.RawURLEncoding.EncodeToString(raw)
}

// parseCursor reads what cursor wrote; empty is before everything.
func parseCursor(s string) (*place, error) {
	if s == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	p := new(place)
	if err == nil {
		err = json.Unmarshal(raw, p)
	}
	if err != nil || p.cursor() != s {
		return nil, errs.New(errs.BadRequest, `"after" takes what the header Link of the page before has`)
	}
	return p, nil
}

// page is a part of a list.
type page[T any] struct {
	items List[T]
	total int  // of the whole list
	more  bool // there are items behind the last one
}

// paginate picks those limit items of seq that come first after a place; nil: from the start. It holds at most twice that
// many and one at once, however long seq is.
func paginate[T any](seq iter.Seq[T], where func(T) place, after *place, limit int) page[T] {
	order := func(a, b T) int { return where(a).compare(where(b)) }
	p := page[T]{items: List[T]{}}
	cut := func(n int) {
		slices.SortFunc(p.items, order)
		if len(p.items) > n {
			clear(p.items[n:])
			p.items, p.more = p.items[:n], true
		}
	}
	full, last := false, place{} // of the page, as far as it is known: what comes behind last is on another one
	for item := range seq {
		p.total++
		at := where(item)
		if after != nil && at.compare(*after) <= 0 {
			continue
		}
		if full && at.compare(last) > 0 {
			p.more = true
			continue
		}
		if p.items = append(p.items, item); len(p.items) > 2*limit {
			cut(limit)
			full, last = true, where(p.items[limit-1])
		}
	}
	cut(limit)
	return p
}

// filter keeps the items of seq that keep wants.
func filter[T any](seq iter.Seq[T], keep func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		for item := range seq {
			if keep(item) && !yield(item) {
				return
			}
		}
	}
}

// listed answers a request for a page, and tells in headers how many there are and where the next page is.
func listed[T any](c *call, seq iter.Seq[T], where func(T) place, after string, limit int) (List[T], error) {
	from, err := parseCursor(after)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		limit = defaultPage
	}
	p := paginate(seq, where, from, limit)
	c.w.Header().Set("X-Total-Count", strconv.Itoa(p.total))
	if p.more {
		c.w.Header().Set("Link", nextPage(c.r, where(p.items[len(p.items)-1]).cursor()))
	}
	return p.items, nil
}

func nextPage(r *http.Request, cursor string) string {
	q := r.URL.Query()
	q.Set("after", cursor)
	return "<" + (&url.URL{Path: r.URL.Path, RawQuery: q.Encode()}).String() + `>; rel="next"`
}

func is(want, got string) bool { return want == "" || want == got }
