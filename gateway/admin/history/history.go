// Package history remembers what a gateway did in the last minutes, for the page that a person keeps open: figures at
// regular intervals, and the events that change them. It keeps both in rings of fixed size, so that neither time nor a
// stranger makes it grow. It knows no other feature: whoever has figures is a Source, and whoever has events calls Event.
package history

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Config is what a History needs.
type Config struct {
	Instance string           // name of this gateway
	Version  string           // of the program
	Started  time.Time        // when the gateway started
	State    func() string    // serving or draining; nil: serving
	Source   Source           // where the figures come from
	Bounds   []float64        // upper bounds of Sample.Opened, in seconds, ascending
	Every    time.Duration    // between two samples; 0: 2s
	Keep     time.Duration    // how far back it remembers; 0: 15m
	Events   int              // how many events it keeps; 0: 1,000
	Now      func() time.Time // nil: time.Now
}

// Source tells the figures of a gateway as they are now. Sample is called from one goroutine at a time.
type Source interface {
	Sample() Sample
}

// Sample is the figures at one moment. What is a total only grows while the gateway runs.
type Sample struct {
	Tunnels  int     `json:"tunnels" doc:"detached ones included"`
	Detached int     `json:"detached" doc:"without a WebSocket, waiting to be resumed"`
	Streams  int     `json:"streams"`
	Pressure float64 `json:"pressure" doc:"0 at ease to 1 refusing everything that it may"`

	Opens    uint64 `json:"opens_total" doc:"opens that were answered, well or not"`
	Refused  uint64 `json:"refused_total" doc:"opens that were not permitted"`
	Failed   uint64 `json:"failed_total" doc:"opens that were permitted and did not work"`
	Sent     uint64 `json:"bytes_sent" doc:"towards the clients"`
	Received uint64 `json:"bytes_received" doc:"from the clients"`
	Resumes  uint64 `json:"resumes_total" doc:"tunnels that came back on a new WebSocket"`
	Lost     uint64 `json:"lost_total" doc:"tunnels that did not come back in time"`

	// Opened counts the opens since the start by how long they took: element i those above bound i-1 and up to bound i,
	// the last one (after all of Config.Bounds) those above every bound. Empty: unknown. History does not change it.
	Opened []uint64 `json:"-"`
}

// Point is what happened in one interval. Rates are per second.
type Point struct {
	T        time.Time `json:"t" doc:"end of the interval"`
	Tunnels  int       `json:"tunnels"`
	Detached int       `json:"detached"`
	Streams  int       `json:"streams"`
	Opens    float64   `json:"opens"`
	Refused  float64   `json:"refused"`
	Failed   float64   `json:"failed"`
	Sent     float64   `json:"sent" doc:"bytes"`
	Received float64   `json:"received" doc:"bytes"`
	P50      *float64  `json:"p50_ms" doc:"of the opens in the interval; null when there were none"`
	P95      *float64  `json:"p95_ms"`
	P99      *float64  `json:"p99_ms"`
	Resumes  uint64    `json:"resumes" doc:"in the interval"`
	Lost     uint64    `json:"lost" doc:"in the interval"`
	Pressure float64   `json:"pressure"`
}

// Live is what GET /api/live answers.
type Live struct {
	Now      time.Time `json:"now"`
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	State    string    `json:"state"`
	Started  time.Time `json:"started"`
	EveryMS  int64     `json:"every_ms" doc:"between two points"`
	Totals   Sample    `json:"totals"`
	History  []Point   `json:"history" doc:"oldest first"`
}

// History holds the rings. It is safe for concurrent use.
type History struct {
	cfg Config

	mu     sync.Mutex
	points ring[Point]
	last   Sample
	at     time.Time // of last; zero: no sample yet

	events ring[Event]
	lastID uint64
}

// New makes a History. It remembers nothing before Run; events are taken from the start.
func New(cfg Config) *History {
	if cfg.Every <= 0 {
		cfg.Every = 2 * time.Second
	}
	if cfg.Keep <= 0 {
		cfg.Keep = 15 * time.Minute
	}
	if cfg.Events <= 0 {
		cfg.Events = 1000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.State == nil {
		cfg.State = func() string { return "serving" }
	}
	return &History{cfg: cfg, points: newRing[Point](int(max(1, cfg.Keep/cfg.Every))), events: newRing[Event](cfg.Events)}
}

// Run samples until ctx ends.
func (h *History) Run(ctx context.Context) {
	tick := time.NewTicker(h.cfg.Every)
	defer tick.Stop()
	for h.sample(); ; h.sample() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *History) sample() {
	s := h.cfg.Source.Sample() // without the lock: it may take others'
	s.Opened = slices.Clone(s.Opened)
	now := h.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if span := now.Sub(h.at).Seconds(); !h.at.IsZero() && span > 0 {
		h.points.add(h.point(s, now, span))
	}
	h.last, h.at = s, now
}

// point is what happened between the last sample and s, span seconds later.
func (h *History) point(s Sample, now time.Time, span float64) Point {
	was := h.last
	rate := func(now, before uint64) float64 { return float64(since(now, before)) / span }
	p := Point{T: now, Tunnels: s.Tunnels, Detached: s.Detached, Streams: s.Streams, Pressure: s.Pressure,
		Opens: rate(s.Opens, was.Opens), Refused: rate(s.Refused, was.Refused), Failed: rate(s.Failed, was.Failed),
		Sent: rate(s.Sent, was.Sent), Received: rate(s.Received, was.Received),
		Resumes: since(s.Resumes, was.Resumes), Lost: since(s.Lost, was.Lost)}
	if len(s.Opened) != len(h.cfg.Bounds)+1 || len(was.Opened) != len(s.Opened) {
		return p
	}
	counts := make([]uint64, len(s.Opened))
	for i := range counts {
		counts[i] = since(s.Opened[i], was.Opened[i])
	}
	p.P50, p.P95, p.P99 = quantile(.50, h.cfg.Bounds, counts), quantile(.95, h.cfg.Bounds, counts), quantile(.99, h.cfg.Bounds, counts)
	return p
}

// since is by how much a total has grown. One that shrank (its source was replaced) has not grown.
func since(now, before uint64) uint64 {
	if now < before {
		return 0
	}
	return now - before
}

// Live tells the present and the points after a moment; the zero time: all that it remembers.
func (h *History) Live(after time.Time) Live {
	l := Live{Now: h.cfg.Now(), Instance: h.cfg.Instance, Version: h.cfg.Version, State: h.cfg.State(), Started: h.cfg.Started,
		EveryMS: h.cfg.Every.Milliseconds(), History: []Point{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	l.Totals = h.last
	l.Totals.Opened = nil // never changed, but nobody's business
	for p := range h.points.all() {
		if p.T.After(after) {
			l.History = append(l.History, p)
		}
	}
	return l
}
