package store

import (
	"context"
	"time"
)

// tenant is what one holds and has used. Guarded by Memory.mu.
type tenant struct {
	slots map[string]*slots // by kind
	opens buckets
}

// slots are held until they expire, by id.
type slots struct {
	until map[string]time.Time
	first time.Time // nothing expires before
}

func (m *Memory) tenant(name string) *tenant {
	t, ok := m.tenants[name]
	if !ok {
		t = &tenant{slots: map[string]*slots{}}
		m.tenants[name] = t
	}
	return t
}

// kind returns the slots of a kind, without those that have expired.
func (t *tenant) kind(kind string, now time.Time) *slots {
	s, ok := t.slots[kind]
	if !ok {
		s = &slots{until: map[string]time.Time{}}
		t.slots[kind] = s
	}
	s.expire(now)
	return s
}

func (s *slots) expire(now time.Time) {
	if len(s.until) == 0 || now.Before(s.first) {
		return
	}
	s.first = time.Time{}
	for id, until := range s.until {
		if !now.Before(until) {
			delete(s.until, id)
		} else if s.first.IsZero() || until.Before(s.first) {
			s.first = until
		}
	}
}

func (s *slots) hold(id string, until time.Time) {
	if len(s.until) == 0 || until.Before(s.first) {
		s.first = until
	}
	s.until[id] = until
}

// empty says whether nothing is lost by forgetting the tenant.
func (t *tenant) empty(now time.Time) bool {
	for _, s := range t.slots {
		s.expire(now)
		if len(s.until) > 0 {
			return false
		}
	}
	return t.opens.forgotten(now)
}

// Take is as in Limits.
func (m *Memory) Take(ctx context.Context, ask Ask) (g Grant, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return g, err
	}
	defer m.mu.Unlock()
	t := m.tenant(ask.Tenant)
	if t.opens.forgotten(now) {
		t.opens = nil
	}
	held := t.kind(ask.Kind, now)
	_, again := held.until[ask.ID]
	g.Full = ask.Limit > 0 && len(held.until) >= ask.Limit && !again
	g.Granted = !g.Full
	if ask.Rate.PerMinute > 0 {
		k := t.opens.of(now, ask.Rate)
		if g.Granted = g.Granted && k.tokens(now)+nearly >= 1; g.Granted {
			t.opens.count(now)
		}
		g.standing(ask.Rate, k.tokens(now))
	}
	if g.Granted {
		held.hold(ask.ID, now.Add(ask.Lease))
	}
	g.Held = len(held.until)
	return g, nil
}

// Return is as in Limits.
func (m *Memory) Return(ctx context.Context, list ...Slot) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, s := range list {
		if t, ok := m.tenants[s.Tenant]; ok {
			delete(t.kind(s.Kind, now).until, s.ID)
		}
	}
	return nil
}

// Renew is as in Limits.
func (m *Memory) Renew(ctx context.Context, lease time.Duration, list ...Slot) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, s := range list {
		m.tenant(s.Tenant).kind(s.Kind, now).hold(s.ID, now.Add(lease))
	}
	return nil
}

// Held is as in Limits.
func (m *Memory) Held(ctx context.Context, name string) (tunnels, streams int, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	if t, ok := m.tenants[name]; ok {
		tunnels, streams = len(t.kind(TunnelSlots, now).until), len(t.kind(StreamSlots, now).until)
	}
	return tunnels, streams, nil
}
