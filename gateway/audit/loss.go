package audit

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// remindEvery is how often a lasting failure is logged again.
const remindEvery = time.Minute

// loss is what the log does not hold, until the log itself tells of it. Record and the writer add to it.
type loss struct {
	cfg    Config
	counts counts
	open   atomic.Bool // there is something to tell

	mu       sync.Mutex
	since    time.Time // of what is not told yet
	lost     uint64    // records, not told yet
	late     uint64
	reason   string    // of the last failure
	reminded time.Time // when it was last logged; zero: all is well
	total    uint64    // lost since the log was opened
}

// told is a part of the loss that a line tells.
type told struct {
	since      time.Time
	lost, late uint64
	reason     string
}

func (l *loss) init(cfg Config, c counts) { l.cfg, l.counts = cfg, c }

// add counts n records that are not in the log; n may be 0 when nothing is lost but the failure must be told.
func (l *loss) add(at time.Time, err error, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteLocked(at, err)
	l.lost += uint64(n)
	l.total += uint64(n)
	l.counts.lost.Add(n)
	l.complainLocked(at, err)
}

// addLate counts a record that is in the log although its Record had given up.
func (l *loss) addLate(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := errs.New(errs.AuditFailed, "the audit log's disk hung")
	l.noteLocked(at, err)
	l.late++
	l.complainLocked(at, err)
}

func (l *loss) noteLocked(at time.Time, err error) {
	if l.since.IsZero() {
		l.since = at
	}
	l.reason = errs.From(err).Text()
	l.open.Store(true)
}

func (l *loss) complainLocked(at time.Time, err error) {
	if !l.reminded.IsZero() && at.Sub(l.reminded) < remindEvery && at.After(l.reminded.Add(-remindEvery)) {
		return
	}
	l.reminded = at
	consequence := "acts are refused until it works again"
	if l.cfg.OnFailure == Continue {
		consequence = "acts go on without a record"
	}
	l.cfg.Logger.Error("the audit log cannot be written: "+consequence,
		append(logging.Error(err), slog.String("file", l.cfg.File), slog.Uint64("lost", l.total), slog.Time("since", l.since))...)
}

// tell is what the next line has to say. ok is false when there is nothing.
func (l *loss) tell() (t told, ok bool) {
	if !l.open.Load() {
		return t, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return told{l.since, l.lost, l.late, l.reason}, true
}

// wasTold takes off what a line that is now in the file tells, and says once that writing works again.
func (l *loss) wasTold(t told) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost -= t.lost
	l.late -= t.late
	if l.lost == 0 && l.late == 0 {
		l.since = time.Time{}
		l.open.Store(false)
	}
	l.reminded = time.Time{}
	l.cfg.Logger.Warn("the audit log is written again, and says what it lacks", slog.String("file", l.cfg.File),
		slog.Uint64("lost", t.lost), slog.Uint64("late", t.late), slog.Time("since", t.since))
}

// snapshot is for Status.
func (l *loss) snapshot() (since time.Time, reason string, total uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open.Load() {
		return time.Time{}, "", l.total
	}
	return l.since, l.reason, l.total
}

// detail is the sentence of the line.
func (t told) detail() string {
	s := fmt.Sprintf("%d records were lost since %s", t.lost, t.since.UTC().Format(time.RFC3339Nano))
	if t.late > 0 {
		s += fmt.Sprintf("; %d were written after their acts had been answered as failed", t.late)
	}
	return s + ": " + t.reason
}

func (t told) control() control {
	return control{Kind: kindLoss, Lost: t.lost, Late: t.late, Since: t.since.UTC().Format(time.RFC3339Nano)}
}
