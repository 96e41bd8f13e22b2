package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"fairlead/gateway/admin/history"
	"fairlead/gateway/audit"
	"fairlead/gateway/backend"
	"fairlead/gateway/breaker"
	"fairlead/shared/errs"
	"fairlead/shared/telemetry"
)

// recorder hands what happens to the audit log and, of that, what a person who looks on wants to know, to the page's history.
type recorder struct {
	log     audit.Recorder
	history *history.History
	refused *rate.Limiter // of refusals in the history, so that one hostile tenant does not push everything else out
}

func newRecorder(log audit.Recorder, h *history.History) recorder {
	return recorder{log, h, rate.NewLimiter(2, 20)}
}

// Record writes first: what cannot be recorded has not happened.
func (r recorder) Record(e audit.Event) error {
	if err := r.log.Record(e); err != nil {
		return err
	}
	if kind, ok := kindOf(e); ok && (e.Result == audit.Allowed || r.refused.Allow()) {
		told := history.Event{Kind: kind, Tenant: e.Tenant, Tunnel: e.Tunnel, Route: e.Route, Backend: e.Backend, Text: e.Detail, Pod: e.Pod}
		if e.Code != 0 {
			told.Code = e.Code.String()
		}
		r.history.Event(told)
	}
	return nil
}

// kindOf is what the page calls an act; ok is false for what it does not show: what there is most of, and has counters.
func kindOf(e audit.Event) (kind history.Kind, ok bool) {
	if e.Result != audit.Allowed && (e.Action == audit.Connect || e.Action == audit.Resume || e.Action == audit.Open || e.Action == audit.Renew) {
		if e.Result == audit.Failed {
			return history.Failed, true
		}
		return history.Refused, true
	}
	switch e.Action {
	case audit.Connect:
		return history.Connect, true
	case audit.Detach:
		return history.Detach, true
	case audit.Resume:
		return history.Resume, true
	case audit.Disconnect:
		if e.Code == errs.TunnelLost {
			return history.Lost, true
		}
		return history.Disconnect, true
	case audit.Breaker:
		return history.Breaker, true
	case audit.Revoke:
		return history.Revoked, true
	case audit.Configuration:
		return history.Reload, true
	case audit.Lifecycle:
		return history.Drain, strings.HasPrefix(e.Detail, drains)
	}
	return "", false
}

// drains begins the detail of the event that a drain has begun.
const drains = "draining"

// sampleEvery is the time between two samples of rates, and two points of the page's charts.
const sampleEvery = 2 * time.Second

func (a *App) newAudit() error {
	a.history = history.New(history.Config{Instance: a.opts.Instance, Version: a.opts.Version, Started: a.started, State: a.state, Source: figures{a},
		Bounds: telemetry.LatencyBuckets(), Every: sampleEvery})
	a.latency = history.NewLatency(telemetry.LatencyBuckets())
	c := a.config().Audit
	if c.File == "" {
		a.audit = newRecorder(audit.Discard, a.history)
		return nil
	}
	log, err := audit.New(audit.Config{File: c.File, Instance: a.opts.Instance, MaxSize: int64(c.MaxSize), MaxFiles: c.MaxFiles, Sync: c.Sync, SyncInterval: c.SyncInterval,
		SignKeyFile: c.SignKeyFile, SignRecords: c.SignRecords, SignInterval: c.SignInterval, OnFailure: c.OnFailure, Timeout: c.Timeout, Logger: a.log, Metrics: a.metrics.Set()})
	if err != nil {
		return err
	}
	a.trail, a.paced = log, audit.NewPaced(log, nil)
	a.audit = newRecorder(a.paced, a.history)
	a.stack.Push("audit log", func(ctx context.Context) error { // the first to be built, so the last to be closed
		a.paced.Tell(true)
		return log.Close(ctx)
	})
	return a.audit.Record(audit.Event{Action: audit.Lifecycle, Result: audit.Allowed, Actor: gateway, Detail: "started, version " + a.opts.Version})
}

// gateway is the actor of what the gateway does by itself.
const gateway = "gateway"

// lifecycle records a step of the gateway's life.
func (a *App) lifecycle(format string, args ...any) {
	_ = a.audit.Record(audit.Event{Action: audit.Lifecycle, Result: audit.Allowed, Actor: gateway, Detail: fmt.Sprintf(format, args...)}) // it happens all the same
}

func (a *App) breakerChanged(c breaker.Change) {
	e := audit.Event{Action: audit.Breaker, Result: audit.Allowed, Actor: c.By, Backend: c.Backend, Code: c.Failure.Code,
		Detail: fmt.Sprintf("from %s to %s (mode %s): %s, by %s", c.From, c.To, c.Mode, c.Reason, c.By)}
	if c.Reason != breaker.ReasonFailures && c.Reason != breaker.ReasonProbeFailed {
		e.Code = 0
	}
	_ = a.audit.Record(e) // it has changed
}

func (a *App) hostKeySeen(h backend.HostKeyEvent) {
	e := audit.Event{Action: audit.HostKey, Result: audit.Refused, Actor: gateway, Tenant: h.Tenant, Backend: h.Backend, Target: h.Presented,
		Code: errs.CodeOf(h.Err), Detail: string(h.Kind)}
	if h.Err == nil {
		e.Result = audit.Allowed
	} else if len(h.Expected) > 0 {
		e.Detail += "; expected " + strings.Join(h.Expected, ", ")
	}
	_ = a.audit.Record(e) // a refusal stands; what is trusted on first use is logged too
}

func (a *App) certificateMade(c backend.CertificateEvent) error {
	return a.audit.Record(audit.Event{Action: audit.Certificate, Result: audit.Allowed, Actor: c.Caller.Subject, Issuer: c.Caller.Issuer, Tenant: c.Caller.Tenant,
		Pod: c.Caller.Pod, Backend: c.Backend, Target: c.KeyID, Detail: fmt.Sprintf("serial %d, principals %s, valid until %s, signed by %s", c.Serial, strings.Join(c.Principals, " "),
			c.ValidBefore.UTC().Format(time.RFC3339), c.Authority)})
}

// figures are what the page's charts show.
type figures struct{ *App }

// Sample also brings the counters and rates of tunnels, streams and tenants up to date.
func (f figures) Sample() history.Sample {
	f.sessions.Sample(sampleEvery)
	if f.paced != nil {
		f.paced.Tell(false)
	}
	c, t := f.sessions.Counts(), f.sessions.Totals()
	return history.Sample{Tunnels: c.Tunnels, Detached: c.Detached, Streams: c.Streams, Pressure: float64(f.pressure.Level()) / 3,
		Opens: t.Opened + t.Refused + t.Failed, Refused: t.Refused, Failed: t.Failed, Sent: t.Sent, Received: t.Received, Resumes: t.Resumes, Lost: t.Lost, Opened: f.latency.Counts()}
}

// sample keeps the page's history, until ctx ends.
func (a *App) sample(ctx context.Context) error {
	a.history.Run(ctx)
	return nil
}
