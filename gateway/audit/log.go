package audit

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

// When lines are forced to disk. Whatever is chosen, Record returns after write(2): a line survives the end of the process.
const (
	SyncNone     = "none"     // when the system likes
	SyncInterval = "interval" // every Config.SyncInterval: a power failure costs at most what came since
	SyncAlways   = "always"   // before Record returns; records that come together share one fdatasync(2)
)

// What happens to acts while the log cannot be written.
const (
	Refuse   = "refuse"   // Record returns errs.AuditFailed, so that what is not recorded does not happen
	Continue = "continue" // Record returns nil; how many records were lost is told by log, metrics, Status and, later, the log itself
)

const (
	defaultMaxSize      = 100 << 20
	minMaxSize          = 16 << 10
	defaultSyncInterval = time.Second
	defaultSignRecords  = 1000
	defaultSignInterval = time.Minute
	defaultTimeout      = 5 * time.Second
	queueSize           = 1024
)

// Config is what a Log needs.
type Config struct {
	File         string           // the current file; older ones are beside it as FILE.000001 and so on, its lock as FILE.lock. Required
	Instance     string           // name of this gateway in each line; cut at 128 bytes
	MaxSize      int64            // bytes of a file before the next one is begun, at least 16 KiB; 0: 100 MiB
	MaxFiles     int              // older files that are kept; 0: all. Removing one is recorded in the log before
	Sync         string           // SyncNone, SyncInterval or SyncAlways; "": SyncInterval
	SyncInterval time.Duration    // for SyncInterval; 0: 1s
	SignKeyFile  string           // Ed25519 private key, see LoadPrivateKey; "": heads are not signed
	SignRecords  int              // a signed head after so many lines; 0: 1000
	SignInterval time.Duration    // and after so long, if there are new lines; 0: 1m
	OnFailure    string           // Refuse or Continue; "": Refuse
	Timeout      time.Duration    // how long Record waits for a disk that hangs; 0: 5s
	Now          func() time.Time // clock of the lines; nil: time.Now
	Logger       *slog.Logger     // failures, recovery, rotation, heads; nil: silent
	Metrics      *metrics.Set     // nil: counted nowhere
}

// check fills in defaults. Errors are errs.ConfigInvalid.
func (c *Config) check() error {
	orDefault(&c.MaxSize, defaultMaxSize)
	orDefault(&c.Sync, SyncInterval)
	orDefault(&c.SyncInterval, defaultSyncInterval)
	orDefault(&c.SignRecords, defaultSignRecords)
	orDefault(&c.SignInterval, defaultSignInterval)
	orDefault(&c.OnFailure, Refuse)
	orDefault(&c.Timeout, defaultTimeout)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	switch {
	case c.File == "":
		return errs.New(errs.ConfigInvalid, "audit.file is empty: it must name the file to write to")
	case c.MaxSize < minMaxSize:
		return errs.New(errs.ConfigInvalid, "audit.max_size is %d bytes: at least %d are needed", c.MaxSize, minMaxSize)
	case c.Sync != SyncNone && c.Sync != SyncInterval && c.Sync != SyncAlways:
		return errs.New(errs.ConfigInvalid, "audit.sync is %q: allowed are none, interval and always", c.Sync)
	case c.OnFailure != Refuse && c.OnFailure != Continue:
		return errs.New(errs.ConfigInvalid, "audit.on_failure is %q: allowed are refuse and continue", c.OnFailure)
	case c.MaxFiles < 0 || c.SignRecords < 0 || min(c.SyncInterval, c.SignInterval, c.Timeout) < 0:
		return errs.New(errs.ConfigInvalid, "numbers and durations of audit must not be negative")
	}
	return nil
}

func orDefault[T comparable](value *T, def T) {
	var zero T
	if *value == zero {
		*value = def
	}
}

// Log is an audit log that is being written. It is safe for concurrent use. One goroutine owns the file and the chain;
// Record hands it lines and waits.
type Log struct {
	cfg    Config
	signer *signer // nil: heads are not signed
	counts counts
	pool   sync.Pool

	queue   chan *entry
	hung    atomic.Bool   // a record waited for longer than Timeout and the writer has not come back since
	closing chan struct{} // closed by Close
	once    sync.Once
	done    chan struct{} // closed when the writer has ended
	closed  error         // why closing failed; set before done is closed
	loss    loss

	current atomic.Pointer[os.File] // for the goroutine that syncs at intervals
	dirty   atomic.Bool             // written since that goroutine last looked
	synced  chan struct{}           // closed when that goroutine has ended

	mu     sync.Mutex
	status Status // guarded by mu
}

// New opens the log, or begins one, and starts writing. It continues the chain that the files hold. Errors are
// errs.ConfigInvalid (a bad setting, or another gateway writes this log), errs.KeyUnreadable, errs.AuditBroken (the files
// cannot be continued: what ends them is no line of a log) and, with Refuse, errs.AuditFailed (they cannot be written). With
// Continue the last is no error: the log then begins as one that fails.
func New(cfg Config) (*Log, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, counts: newCounts(cfg.Metrics), queue: make(chan *entry, queueSize), closing: make(chan struct{}),
		done: make(chan struct{}), synced: make(chan struct{})}
	l.pool.New = func() any { return newEntry() }
	l.loss.init(cfg, l.counts)
	if cfg.SignKeyFile != "" {
		key, err := LoadPrivateKey(cfg.SignKeyFile)
		if err != nil {
			return nil, err
		}
		l.signer = newSigner(key)
	}
	w := newWriter(l)
	if err := w.open(); err != nil && (cfg.OnFailure == Refuse || errs.CodeOf(err) != errs.AuditFailed) {
		w.release()
		return nil, err
	} else if err != nil {
		w.failed(err, 0)
	}
	l.gauges()
	go w.run() // Close waits for both
	if cfg.Sync == SyncInterval {
		go l.syncAtIntervals()
	} else {
		close(l.synced)
	}
	return l, nil
}

// Record writes the event and returns when it is in the file. It returns errs.AuditFailed when that did not work and the log
// was opened with Refuse. It never waits for longer than Config.Timeout, and keeps none of the event's strings.
func (l *Log) Record(e Event) error {
	if l.hung.Load() {
		return l.refuse(errs.New(errs.AuditFailed, "the audit log's disk hangs"))
	}
	en := l.pool.Get().(*entry)
	en.fill(l.cfg.Now(), &e)
	en.timer.Reset(l.cfg.Timeout)
	select {
	case l.queue <- en:
		return l.await(en)
	case <-en.timer.C:
	case <-l.done:
	}
	return l.refuse(l.unwritten())
}

// unwritten says why a record was not taken.
func (l *Log) unwritten() error {
	select {
	case <-l.done:
		return errs.New(errs.AuditFailed, "the audit log is closed")
	default:
		l.hung.Store(true)
		return errs.New(errs.AuditFailed, "the audit log's disk did not answer within %s", l.cfg.Timeout)
	}
}

// await waits for the writer's answer.
func (l *Log) await(en *entry) error {
	select {
	case err := <-en.done:
		return l.answered(en, err)
	case <-en.timer.C:
	case <-l.done:
	}
	if en.state.CompareAndSwap(entryWaiting, entryAbandoned) {
		return l.refuse(l.unwritten()) // the writer will skip it
	}
	if en.state.CompareAndSwap(entryTaken, entryLate) {
		l.hung.Store(true) // whether it is written is seen later: the writer counts it
		return l.verdict(errs.New(errs.AuditFailed, "the audit log's disk did not answer within %s", l.cfg.Timeout))
	}
	return l.answered(en, <-en.done)
}

func (l *Log) answered(en *entry, err error) error {
	en.timer.Stop()
	l.pool.Put(en)
	return l.verdict(err)
}

// refuse counts a record that the writer never saw.
func (l *Log) refuse(err error) error {
	l.loss.add(l.cfg.Now(), err, 1)
	return l.verdict(err)
}

func (l *Log) verdict(err error) error {
	if l.cfg.OnFailure == Continue {
		return nil
	}
	return err
}

// Close writes what is queued and a last line that says that the log was closed, signed if there is a key, and gives up the
// lock. Records after it are refused. The error is errs.AuditFailed: the last lines could not be written, or ctx ended first.
func (l *Log) Close(ctx context.Context) error {
	l.once.Do(func() { close(l.closing) })
	for _, ended := range []chan struct{}{l.done, l.synced} {
		select {
		case <-ended:
		case <-ctx.Done():
			return errs.Wrap(errs.AuditFailed, ctx.Err(), "closing the audit log %s", l.cfg.File)
		}
	}
	return l.closed
}

// cutUTF8 is s, made valid and at most n bytes long.
func cutUTF8(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for len(s) > n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
