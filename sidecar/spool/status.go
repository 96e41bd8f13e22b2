package spool

import (
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// counts are the spool's metrics.
type counts struct {
	received, sent, answered, released, repeated, torn     *metrics.Counter
	delivered, dropped, droppedBytes, quarantined, refused *metrics.Counter
	writeErrors, syncErrors, storeErrors, deliveryErrors   *metrics.Counter
}

func newCounts(s *Spool, set *metrics.Set) *counts {
	const prefix = "fairlead_sidecar_spool_"
	gauge := func(name string, f func() float64) {
		set.NewGauge(prefix+name, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return f()
		})
	}
	gauge("connections", func() float64 { return float64(s.total() - len(s.bad)) })
	gauge("receiving", func() float64 { return float64(s.live) })
	gauge("delivering", func() float64 { return float64(s.delivering()) })
	gauge("quarantine", func() float64 { return float64(len(s.bad)) })
	gauge("bytes", func() float64 { return float64(s.used) })
	gauge("size_bytes", func() float64 { return float64(s.cfg.Size) })
	gauge("oldest_seconds", func() float64 {
		if at := s.oldest(); !at.IsZero() {
			return time.Since(at).Seconds()
		}
		return 0
	})
	c := func(name string) *metrics.Counter { return set.NewCounter(prefix + name) }
	failed := func(op string) *metrics.Counter { return c(`errors_total{operation="` + op + `"}`) }
	return &counts{received: c("received_bytes_total"), sent: c("sent_bytes_total"), answered: c("answered_bytes_total"), released: c("overlap_released_bytes_total"),
		repeated: c("repeated_bytes_total"), torn: c("torn_bytes_total"), delivered: c("delivered_total"), dropped: c("dropped_total"),
		droppedBytes: c("dropped_bytes_total"), quarantined: c("quarantined_total"), refused: c("refused_total"),
		writeErrors: failed("write"), syncErrors: failed("sync"), storeErrors: failed("directory"), deliveryErrors: failed("deliver")}
}

// delivering is how many connections have a stream. Called with mu held.
func (s *Spool) delivering() (n int) {
	for _, list := range s.order {
		for _, e := range list {
			if e.stream != nil {
				n++
			}
		}
	}
	return n
}

// oldest is when the connection was accepted that has waited longest; zero: there is none. Called with mu held.
func (s *Spool) oldest() (at time.Time) {
	for _, list := range s.order {
		for _, e := range list {
			if len(e.segs) > 0 && (at.IsZero() || e.at.Before(at)) {
				at = e.at
			}
		}
	}
	return at
}

// Status describes the spool.
type Status struct {
	Dir         string     `json:"dir"`
	Connections int        `json:"connections"`
	Bytes       int64      `json:"bytes"` // on disk
	Size        int64      `json:"size"`  // allowed
	Oldest      *time.Time `json:"oldest"`
	Receiving   int        `json:"receiving"`
	Delivering  int        `json:"delivering"`
	Delivered   uint64     `json:"delivered"`
	Dropped     uint64     `json:"dropped"`
	Quarantined int        `json:"quarantined"`
	Error       string     `json:"error"`
}

// Status returns a snapshot.
func (s *Spool) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Dir: s.cfg.Dir, Connections: s.total() - len(s.bad), Bytes: s.used, Size: s.cfg.Size, Receiving: s.live, Delivering: s.delivering(),
		Delivered: s.count.delivered.Get(), Dropped: s.count.dropped.Get(), Quarantined: len(s.bad)}
	if at := s.oldest(); !at.IsZero() {
		st.Oldest = &at
	}
	st.Error = errText(s.trouble())
	return st
}

// trouble is the most general reason why something is not kept or not delivered now; nil: there is none. Called with mu held.
func (s *Spool) trouble() error {
	switch {
	case s.err != nil:
		return s.err
	case s.tunnel.failures > 0 && s.total() > len(s.bad):
		return s.tunnel.err
	}
	for _, list := range append(s.order[:], s.bad) {
		for _, e := range list {
			if err := s.why(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// why is the reason why an entry is not delivered. Called with mu held.
func (s *Spool) why(e *entry) error {
	if g := s.routes[e.from.Route]; e.stream == nil && g != nil && g.failures > 0 {
		return g.err
	}
	return e.err
}

// Item describes a connection in the spool.
type Item struct {
	ID        ID        `json:"id"`
	State     string    `json:"state"` // receiving, waiting, delivering, stalled, finishing, held or quarantined
	Listener  string    `json:"listener"`
	Route     string    `json:"route"`
	Priority  string    `json:"priority"`
	Peer      string    `json:"peer"`
	Trace     string    `json:"trace"`
	Time      time.Time `json:"time"`
	Receiving bool      `json:"receiving"`
	Full      bool      `json:"full"`      // not read from, because the spool or the disk is full
	Bytes     int64     `json:"bytes"`     // on disk
	Delivered uint64    `json:"delivered"` // position up to which the gateway has consumed it
	Attempts  int       `json:"attempts"`  // that failed since then
	Retry     time.Time `json:"retry,omitzero"`
	Error     string    `json:"error"`
	Encrypted bool      `json:"encrypted"`

	Content *Content `json:"content,omitempty"` // what reading all of it has shown; Show only
}

// Content is what is found in a connection's files.
type Content struct {
	From  uint64 `json:"from"`  // first byte that is there
	To    uint64 `json:"to"`    // and the one after the last that is valid
	End   string `json:"end"`   // clean, cut, torn, damaged, or open: more may come
	Error string `json:"error"` // damage
}

// item describes an entry. Called with mu held.
func (s *Spool) item(e *entry) Item {
	it := Item{ID: e.id, State: e.word(), Listener: e.from.Listener, Route: e.from.Route, Priority: e.from.Priority.String(), Peer: e.from.Peer, Trace: e.from.Trace,
		Time: e.at, Receiving: e.live, Full: e.live && e.blocked, Bytes: e.size(), Delivered: e.acked, Attempts: e.attempts, Retry: e.after, Encrypted: e.encrypted}
	if e.ours {
		it.Encrypted = s.store.keys.current != ""
	}
	g := s.routes[e.from.Route]
	it.Error = errText(s.why(e))
	switch {
	case e.aside || e.stream != nil:
	case g != nil && g.failures > 0:
		it.Retry = g.until
	case s.tunnel.failures > 0:
		it.Error, it.Retry = errText(s.tunnel.err), s.tunnel.until
	}
	return it
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (e *entry) word() string {
	switch {
	case e.aside:
		return "quarantined"
	case e.state == held:
		return "held"
	case e.state == stalled:
		return "stalled"
	case e.state == finishing:
		return "finishing"
	case e.stream != nil && (e.state == working || e.state == ready):
		return "delivering"
	case e.live:
		return "receiving"
	}
	return "waiting"
}

// List describes all connections, in the order in which they are delivered; what is in quarantine comes last.
func (s *Spool) List() []Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Item, 0, s.total())
	for _, list := range append(s.order[:], s.bad) {
		for _, e := range list {
			if e.aside || e.end > 0 || len(e.segs) > 0 {
				all = append(all, s.item(e))
			}
		}
	}
	return all
}

// Show describes one connection and reads all of it.
func (s *Spool) Show(id ID) (Item, error) {
	s.mu.Lock()
	e := s.byID[id]
	if e == nil {
		s.mu.Unlock()
		return Item{}, unknownID(id)
	}
	it, v := s.item(e), s.view(e)
	if e.aside {
		v.dir = s.store.quarantine()
	}
	s.mu.Unlock()
	it.Content = inspect(v)
	return it, nil
}

func inspect(v view) *Content {
	c := &Content{}
	if len(v.segs) == 0 {
		return c
	}
	at := place{base: v.segs[0].base, offset: v.segs[0].base}
	c.From = at.base
	r := newReader(v, at)
	defer r.close()
	buf := make([]byte, 64<<10)
	for {
		_, err := r.Read(buf)
		c.To = r.at.offset
		switch {
		case err == nil:
			continue
		case err == errMore:
			c.End = "open"
		case err == io.EOF:
			c.End = r.end
		default:
			c.End, c.Error = endDamaged, err.Error()
		}
		return c
	}
}
