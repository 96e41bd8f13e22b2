package audit

import (
	"encoding/hex"
	"errors"
	"os"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

// Status is how the log is, for diagnostics.
type Status struct {
	File         string
	LogID        string    // random, of the whole log; "": the log could not be opened so far
	Sequence     uint64    // of the last line
	Hash         string    // of the last line, in hex
	FileNumber   uint64    // of the current file, from 1
	Size         int64     // of the current file, in bytes
	FailingSince time.Time // zero: all is recorded. Else there are losses that the log does not tell of yet
	Error        string    // why
	Lost         uint64    // records lost since the log was opened
	Key          string    // fingerprint of the signing key; "": heads are not signed
	SignedHead   Head      // the last one of this gateway
	Unsigned     int       // lines since then

	chain chain
}

// Status tells how the log is. It does not wait for the disk.
func (l *Log) Status() Status {
	l.mu.Lock()
	s := l.status
	l.mu.Unlock()
	c := s.chain
	s = Status{File: l.cfg.File, LogID: c.id, Sequence: c.seq, FileNumber: c.file, Size: c.size}
	if c.seq > 0 {
		s.Hash = hex.EncodeToString(c.last[:])
	}
	if l.signer != nil {
		s.Key, s.SignedHead, s.Unsigned = l.signer.fingerprint, c.head, c.tail
	}
	s.FailingSince, s.Error, s.Lost = l.loss.snapshot()
	return s
}

// publish makes what the writer knows visible to Status.
func (w *writer) publish() {
	w.log.mu.Lock()
	w.log.status.chain = w.chain
	w.log.mu.Unlock()
}

// syncAtIntervals forces what was written to disk, so that the writer need not wait for it.
func (l *Log) syncAtIntervals() {
	defer close(l.synced)
	ticker := time.NewTicker(l.cfg.SyncInterval)
	defer ticker.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-ticker.C:
		}
		f := l.current.Load()
		if f == nil || !l.dirty.Swap(false) {
			continue
		}
		began := time.Now()
		err := f.Sync()
		if errors.Is(err, os.ErrClosed) {
			continue // rotation synced it before
		}
		l.counts.sync.UpdateDuration(began)
		if err != nil {
			l.counts.failures.Inc()
			l.loss.add(l.cfg.Now(), errs.Wrap(errs.AuditFailed, err, "lines since the last sync may not be on disk"), 0)
		}
	}
}

// counts are the log's metrics.
type counts struct {
	records, failures, lost, bytes, rotations *metrics.Counter
	sync                                      *metrics.PrometheusHistogram
}

func newCounts(set *metrics.Set) counts {
	counter := func(name string) *metrics.Counter { return set.GetOrCreateCounter("fairlead_gateway_audit_" + name) }
	return counts{
		records:   counter("records_total"),
		failures:  counter("failures_total"),
		lost:      counter("lost_total"),
		bytes:     counter("bytes_total"),
		rotations: counter("rotations_total"),
		sync: set.GetOrCreatePrometheusHistogramExt("fairlead_gateway_audit_sync_seconds",
			[]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}),
	}
}

// gauges registers what is read when the metrics are.
func (l *Log) gauges() {
	l.cfg.Metrics.GetOrCreateGauge("fairlead_gateway_audit_failing", func() float64 {
		if l.loss.open.Load() {
			return 1
		}
		return 0
	})
	l.cfg.Metrics.GetOrCreateGauge("fairlead_gateway_audit_sequence", func() float64 { return float64(l.Status().Sequence) })
}
