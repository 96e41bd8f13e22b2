package audit

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

const (
	// refusalsPerMinute is how many refusals and failures of one tenant, or of one client without a tenant, are recorded one
	// by one in a minute. Without a bound, whoever has a token could fill the disk, and with it stop the gateway.
	refusalsPerMinute = 600
	pacedMost         = 4096 // tenants and clients that are counted
	tellEvery         = time.Minute
)

// Paced is a Recorder that keeps a flood of refusals from flooding the log: of one tenant, or one client without a tenant,
// 600 a minute are recorded as they are; those beyond are counted, and recorded as one event of the action Refusals. What was
// allowed is always recorded.
type Paced struct {
	to  Recorder
	now func() time.Time

	mu    sync.Mutex
	whose *simplelru.LRU[string, *pace]
	late  []Event // of whom the table forgot, to be recorded with the next
}

type pace struct {
	bucket *rate.Limiter
	muted  int
	since  time.Time // of the first that was muted
	last   Event     // that was muted
}

// NewPaced makes a Paced that records with to. now is the clock; nil: time.Now.
func NewPaced(to Recorder, now func() time.Time) *Paced {
	if now == nil {
		now = time.Now
	}
	p := &Paced{to: to, now: now}
	p.whose, _ = simplelru.NewLRU(pacedMost, func(_ string, gone *pace) { // fails only for a size of 0
		if gone.muted > 0 {
			p.late = append(p.late, gone.sum(p.now()))
		}
	})
	return p
}

// Record implements Recorder.
func (p *Paced) Record(e Event) error {
	if e.Result != Allowed && p.mutes(e) {
		return nil // it is refused anyway
	}
	return p.to.Record(e)
}

// mutes counts a refusal, if there were too many before it.
func (p *Paced) mutes(e Event) bool {
	key := "client " + e.Client
	if e.Tenant != "" {
		key = "tenant " + e.Tenant
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.whose.Get(key)
	if !ok {
		one = &pace{bucket: rate.NewLimiter(rate.Limit(refusalsPerMinute)/60, refusalsPerMinute)}
		p.whose.Add(key, one)
	}
	now := p.now()
	if one.bucket.AllowN(now, 1) {
		return false
	}
	if one.muted == 0 {
		one.since = now
	}
	one.muted++
	one.last = e
	return true
}

// sum is the one event for those that were muted, and begins anew.
func (one *pace) sum(now time.Time) Event {
	e := Event{Action: Refusals, Result: one.last.Result, Actor: one.last.Actor, Issuer: one.last.Issuer, Tenant: one.last.Tenant, Client: one.last.Client, Code: one.last.Code,
		Duration: now.Sub(one.since), Detail: fmt.Sprintf("%d refusals and failures were not recorded one by one; the last: %s %s: %s", one.muted, one.last.Action, one.last.Route, one.last.Detail)}
	one.muted, one.last = 0, Event{}
	return e
}

// Tell records what was muted a minute ago or longer, with all: everything. It is to be called now and then, and at the end.
func (p *Paced) Tell(all bool) {
	p.mu.Lock()
	events := p.late
	p.late = nil
	now := p.now()
	for _, key := range p.whose.Keys() {
		if one, ok := p.whose.Peek(key); ok && one.muted > 0 && (all || now.Sub(one.since) >= tellEvery) {
			events = append(events, one.sum(now))
		}
	}
	p.mu.Unlock()
	for _, e := range events {
		_ = p.to.Record(e) // the log says itself when it fails
	}
}
