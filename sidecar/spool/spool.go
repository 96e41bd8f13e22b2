// Package spool keeps what one-way senders send on disk until it is delivered: log shippers, metrics, uploads. A connection
// of a listener with `delivery: spool` is read from at once, whether or not there is a tunnel, and its bytes go to files
// in one directory. From there they are delivered at least once, in order of priority, then of age.
//
// # What is promised
//
// To the application: a connection that it ends (half-closes, or closes) is ended by the sidecar in order only when all its
// bytes are on disk, as durable as the fsync policy says. So an application that ends its direction and then reads EOF knows.
// Everything else, the death of the sidecar included, is a reset (on a Unix socket, which knows none, an error or an end:
// source.go says why that end does not lie). TCP's own acknowledgements promise nothing: they come from the kernel.
//
// To the backend: every byte that was kept arrives at the route's backend connection at least once, in order, with
// no gap. It is not exactly once: nobody but the backend knows how far it got. When a stream breaks, a new one begins
// Config.Overlap bytes before what the gateway had consumed, because those may have been in the gateway's kernel, on the way,
// or in the backend's kernel when the connection was cut. A backend that loses bytes which it has read, or more than
// Overlap of them, is not covered but by ResumeStart. docs/spool.md has a table of what happens in which failure.
//
// # How it is built
//
// Accept reads one connection and appends to its segments (format.go, writer.go); nothing is appended to a file of an
// earlier process. Delivery always reads from the files (reader.go, deliver.go), also while they are still being written. A
// scheduler (schedule.go) gives bounded workers their turns. All state is under one mutex, files are changed outside it:
// entry.writing says that a writer is at its files, and entry.state working that a worker is.
package spool

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// When bytes are made durable. Each survives the death of the process; what differs is the death of the machine.
const (
	FsyncAlways   = "always"   // before more is read from the application, and before its end is acknowledged
	FsyncInterval = "interval" // every Config.Interval; an end is acknowledged after the next one
	FsyncNever    = "never"    // when the kernel pleases; an end is acknowledged at once
)

// Where a delivery that broke goes on.
const (
	ResumeOffset = "offset" // Overlap bytes before what was consumed
	ResumeLine   = "line"   // the same, at the beginning of that line
	ResumeStart  = "start"  // at the beginning of the connection
)

// Config is what a Spool needs. Zero values of numbers and choices are replaced by the defaults named.
type Config struct {
	Dir         string        // made if it is missing; 0700
	Size        int64         // bytes on disk at most; 1 GiB
	Open        int           // connections that are being received at most; 1,000
	Connections int           // connections in the spool at most; 10,000
	Full        string        // FullRefuse or FullDropOldest; FullRefuse
	Fsync       string        // FsyncAlways, FsyncInterval or FsyncNever; FsyncAlways
	Interval    time.Duration // of FsyncInterval, and of writing progress down; 1 s
	Resume      string        // ResumeOffset, ResumeLine or ResumeStart; ResumeOffset
	Overlap     int64         // bytes before what was consumed that are sent again; 4 MiB; at most Size/4. Negative: none
	Segment     int64         // bytes of a file, roughly; Size/128, but between 64 KiB and 8 MiB
	Concurrency int           // deliveries at work at once; 4
	OpensPerMin int           // streams begun for deliveries in a minute, so that others are left their share of the tenant's rate; 0: no limit
	Stall       time.Duration // how long a delivery may take nothing before others have its turn; 2 s
	EndWait     time.Duration // how long a backend that has everything may take to end its side; 1 min
	RetryBase   time.Duration // bound of the first delay after a failure, which doubles; 1 s
	RetryCap    time.Duration // largest bound; 1 min
	RetryDenied time.Duration // delay after a refusal that will not pass by itself; 5 min
	KeyFile     string        // key for what is written, 32 bytes, plain or in base64; empty: it is not encrypted
	OldKeyFiles []string      // keys for what is read, beside KeyFile
	// Stream begins a stream. It must not wait: NoTunnel says that there is none, and Kick that there is one again.
	Stream  func(ctx context.Context, req link.OpenRequest) (*link.Stream, error)
	Logger  *slog.Logger
	Metrics *metrics.Set
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c Config) complete() (Config, error) {
	orDefault(&c.Size, 1<<30)
	orDefault(&c.Open, 1000)
	orDefault(&c.Connections, 10000)
	orDefault(&c.Full, FullRefuse)
	orDefault(&c.Fsync, FsyncAlways)
	orDefault(&c.Interval, time.Second)
	orDefault(&c.Resume, ResumeOffset)
	orDefault(&c.Overlap, min(4<<20, c.Size/4))
	orDefault(&c.Segment, min(max(c.Size/128, 64<<10), 8<<20))
	orDefault(&c.Concurrency, 4)
	orDefault(&c.Stall, 2*time.Second)
	orDefault(&c.EndWait, time.Minute)
	orDefault(&c.RetryBase, time.Second)
	orDefault(&c.RetryCap, time.Minute)
	orDefault(&c.RetryDenied, 5*time.Minute)
	c.Overlap = max(c.Overlap, 0)
	switch {
	case !slices.Contains([]string{FullRefuse, FullDropOldest}, c.Full):
		return c, errs.New(errs.ConfigInvalid, "spool.full: %q; allowed: %s, %s", c.Full, FullRefuse, FullDropOldest)
	case !slices.Contains([]string{FsyncAlways, FsyncInterval, FsyncNever}, c.Fsync):
		return c, errs.New(errs.ConfigInvalid, "spool.fsync: %q; allowed: %s, %s, %s", c.Fsync, FsyncAlways, FsyncInterval, FsyncNever)
	case !slices.Contains([]string{ResumeOffset, ResumeLine, ResumeStart}, c.Resume):
		return c, errs.New(errs.ConfigInvalid, "spool.resume: %q; allowed: %s, %s, %s", c.Resume, ResumeOffset, ResumeLine, ResumeStart)
	case c.Size < sizeLeast:
		return c, errs.New(errs.ConfigInvalid, "spool.size: %d; allowed: at least %d", c.Size, sizeLeast)
	case c.Overlap > c.Size/4:
		return c, errs.New(errs.ConfigInvalid, "spool.overlap: %d; allowed: at most a quarter of spool.size, which is %d", c.Overlap, c.Size)
	}
	return c, nil
}

// Spool is the spool of one sidecar.
type Spool struct {
	cfg         Config
	log         *slog.Logger
	store       *store
	segmentSize int64
	count       *counts
	batches     chan *batch // memory of those who read from applications: bounded, made when first needed
	wake        chan struct{}
	wg          sync.WaitGroup // workers and watchers
	received    sync.WaitGroup // calls of Accept

	mu         sync.Mutex
	order      [3][]*entry // by priority, then by turn
	byID       map[ID]*entry
	bad        []*entry // in quarantine, oldest first
	live       int
	used       int64 // bytes on disk
	reserved   int64 // bytes that are being read from applications
	freed      chan struct{}
	waiting    atomic.Int32 // who wait for space
	diskFull   time.Time    // when a write last failed for want of space; zero: none since one succeeded
	diskTold   time.Time    // when that was last logged
	diskSaid   bool         // and that it is over was not
	dirty      map[*entry]*os.File
	dirtyNames bool
	syncWaits  []*syncWait
	workers    int
	tunnel     gate
	routes     map[string]*gate
	nextOpen   time.Time
	lastID     ID
	closed     bool
	err        error         // of the last delivery or disk operation that failed; nil after one that went well
	empty      chan struct{} // closed and replaced when the spool changes
	rand       func() float64
	running    sync.Mutex // held while Run runs
}

// sizeLeast is the smallest spool that makes sense: a few segments.
const sizeLeast = 1 << 20

// leastFree is how much space there must be for a connection to be accepted, or read from.
const leastFree = 16 << 10

// New opens the spool and finds what an earlier process has left. Nothing is delivered before Run.
func New(cfg Config) (*Spool, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	keys, err := loadKeys(cfg.KeyFile, cfg.OldKeyFiles)
	if err != nil {
		return nil, err
	}
	st, err := openStore(cfg.Dir, keys)
	if err != nil {
		return nil, err
	}
	s := &Spool{cfg: cfg, log: cfg.Logger.With(logging.FieldComponent, "spool"), store: st, segmentSize: cfg.Segment, batches: make(chan *batch, batchesMost),
		wake: make(chan struct{}, 1), byID: map[ID]*entry{}, freed: make(chan struct{}), dirty: map[*entry]*os.File{}, routes: map[string]*gate{},
		empty: make(chan struct{}), rand: rand.Float64}
	for range batchesMost {
		s.batches <- nil
	}
	s.count = newCounts(s, cfg.Metrics)
	if err := s.recover(); err != nil {
		st.close()
		return nil, errs.Wrap(errs.SpoolUnusable, err, "reading the spool's directory %s", cfg.Dir)
	}
	return s, nil
}

// recover finds what is on disk. Only heads are read: damage further back shows when it is delivered.
func (s *Spool) recover() error {
	quarantined, err := list(s.store.quarantine())
	if err != nil {
		return err
	}
	for _, f := range quarantined {
		s.lastID = max(s.lastID, f.id)
		e := s.adopt(f, s.store.quarantine())
		e.state, e.aside = held, true
		s.bad, s.byID[f.id] = append(s.bad, e), e
		s.used += e.size()
	}
	all, err := list(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range all {
		s.lastID = max(s.lastID, f.id)
		s.recoverOne(f)
	}
	for _, list := range s.order {
		slices.SortStableFunc(list, func(a, b *entry) int { return a.turn.Compare(b.turn) })
	}
	if n := len(s.byID) - len(s.bad); n > 0 || len(s.bad) > 0 {
		s.log.Info("spool recovered", "connections", n, "bytes", s.used, "quarantined", len(s.bad))
	}
	return nil
}

func (s *Spool) recoverOne(f found) {
	// A crash between the making of a file and the first write leaves an empty one.
	for n := len(f.segs); n > 0 && f.segs[n-1].size == 0; n-- {
		_ = s.store.remove(s.cfg.Dir, f.id, f.segs[n-1:])
		f.segs = f.segs[:n-1]
	}
	saved := readProgress(s.cfg.Dir, f.id)
	if len(f.segs) == 0 || saved.flags&flagGone != 0 {
		_ = s.store.removeAll(s.cfg.Dir, f.id, f.segs, saved)
		return
	}
	e := s.adopt(f, s.cfg.Dir)
	s.used += e.size()
	if errs.CodeOf(e.err) == errs.SpoolCorrupt {
		s.setAside(e, e.err)
		return
	}
	if e.acked < f.segs[0].base {
		s.log.Warn("the spool does not know whether bytes were delivered that it has no more", append(e.attrs(), "from", e.acked, "to", f.segs[0].base)...)
		e.acked = f.segs[0].base
	}
	e.state = ready
	if e.err != nil {
		e.state = held
		s.log.Error("spooled connection cannot be read", append(e.attrs(), logging.Error(e.err)...)...)
	}
	s.enlist(e)
}

// adopt makes an entry of files that were found. Its err says why it cannot be read.
func (s *Spool) adopt(f found, dir string) *entry {
	e := &entry{id: f.id, segs: f.segs, at: time.UnixMicro(int64(f.id)), saved: readProgress(dir, f.id)}
	e.acked, e.salved = e.saved.acked, e.saved.flags&flagSalved != 0
	if len(f.segs) == 0 {
		e.err = errs.New(errs.SpoolCorrupt, "connection %v has no segments", f.id)
		return e
	}
	r := newReader(view{dir: dir, id: f.id, keys: s.store.keys, segs: f.segs}, place{base: f.segs[0].base, offset: f.segs[0].base})
	defer r.close()
	e.err = r.open()
	if h := r.h; h.Route != "" {
		e.from = Origin{Listener: h.Listener, Route: h.Route, Priority: h.prio, Peer: h.Peer, Trace: h.Trace}
		e.at, e.encrypted = h.Time, h.Key != ""
	}
	e.turn = e.at
	return e
}

// enlist puts an entry at the end of its priority. Called with mu held.
func (s *Spool) enlist(e *entry) {
	p := e.from.Priority
	s.order[p] = append(s.order[p], e)
	s.byID[e.id] = e
}

// unlist takes an entry out, and says whether it was in quarantine. Called with mu held.
func (s *Spool) unlist(e *entry) (quarantined bool) {
	delete(s.byID, e.id)
	if i := slices.Index(s.bad, e); i >= 0 {
		s.bad = slices.Delete(s.bad, i, i+1)
		return true
	}
	p := e.from.Priority
	if i := slices.Index(s.order[p], e); i >= 0 {
		s.order[p] = slices.Delete(s.order[p], i, i+1)
	}
	return false
}

// setAside moves a connection into quarantine. Its files stay, and count, until a person decides.
func (s *Spool) setAside(e *entry, why error) {
	s.mu.Lock()
	if e.state == gone || slices.Contains(s.bad, e) {
		s.mu.Unlock()
		return
	}
	s.unlist(e)
	s.byID[e.id] = e
	s.bad = append(s.bad, e)
	e.state, e.err, e.aside = held, why, true
	if e.stream != nil {
		e.stream.Reset(why)
		e.stream = nil
	}
	if e.cut != nil {
		e.cut(why)
	}
	s.changed()
	s.mu.Unlock()
	s.count.quarantined.Inc()
	s.log.Error("spooled connection put into quarantine", append(e.attrs(), logging.Error(why)...)...)
	if err := s.store.move(s.cfg.Dir, s.store.quarantine(), e.id, e.segs); err != nil {
		s.failed("moving into "+filepath.Join(s.cfg.Dir, quarantineDir), errs.Wrap(errs.SpoolFailed, err, "connection %v", e.id))
	}
}

func (e *entry) attrs() []any {
	return []any{"spooled", e.id.String(), "listener", e.from.Listener, logging.FieldRoute, e.from.Route, logging.FieldPeer, e.from.Peer,
		logging.FieldTrace, link.TraceID(e.from.Trace)}
}

func (s *Spool) total() int { return len(s.byID) }

func (s *Spool) find(id ID) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

func unknownID(id ID) error {
	return errs.New(errs.NotFound, "there is no connection %v in the spool", id)
}

// changed tells those who wait for the spool to be empty. Called with mu held.
func (s *Spool) changed() {
	close(s.empty)
	s.empty = make(chan struct{})
}

// wakeUp lets the scheduler look for work.
func (s *Spool) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// newID makes an id above all others. Called with mu held.
func (s *Spool) newID(now time.Time) ID {
	s.lastID = max(s.lastID+1, ID(now.UnixMicro()))
	return s.lastID
}
