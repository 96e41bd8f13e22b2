package store

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Announce is as in Replicas.
func (m *Memory) Announce(ctx context.Context, r Replica, ttl time.Duration) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	was, ok := m.replicas.get(r.ID, now)
	m.replicas.put(r.ID, r, now.Add(ttl))
	if !ok || was.Draining != r.Draining {
		m.watchers.tell(ReplicaChanged, r.ID)
	}
	return nil
}

// Withdraw is as in Replicas.
func (m *Memory) Withdraw(ctx context.Context, id string) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if _, ok := m.replicas.get(id, now); ok {
		delete(m.replicas, id)
		m.watchers.tell(ReplicaChanged, id)
	}
	return nil
}

// Replicas is as in Replicas.
func (m *Memory) Replicas(ctx context.Context) ([]Replica, error) {
	now, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	list := m.replicas.list(now)
	slices.SortFunc(list, byName)
	return list, nil
}

func byName(a, b Replica) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) }

func (e expiring[T]) list(now time.Time) []T {
	list := make([]T, 0, len(e))
	for _, entry := range e {
		if now.Before(entry.until) {
			list = append(list, entry.it)
		}
	}
	return list
}

// Hold is as in Tunnels.
func (m *Memory) Hold(ctx context.Context, ttl time.Duration, tunnels ...Tunnel) (refused []Tunnel, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	for _, t := range tunnels {
		was, ok := m.tunnels.get(t.ID, now)
		if ok && (was.Lost != nil || was.Owner != t.Owner || was.Epoch > t.Epoch) {
			refused = append(refused, was.copied())
			continue
		}
		t.Lost = nil
		m.tunnels.put(t.ID, t, now.Add(ttl))
	}
	return refused, nil
}

// copied shares nothing with t.
func (t Tunnel) copied() Tunnel {
	if t.Lost != nil {
		lost := *t.Lost
		t.Lost = &lost
	}
	return t
}

// Find is as in Tunnels.
func (m *Memory) Find(ctx context.Context, id string) (t Tunnel, ok bool, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return t, false, err
	}
	defer m.mu.Unlock()
	t, ok = m.tunnels.get(id, now)
	return t.copied(), ok, nil
}

// Fence is as in Tunnels.
func (m *Memory) Fence(ctx context.Context, id string, seen uint64, why Ending, ttl time.Duration) (t Tunnel, fenced bool, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return t, false, err
	}
	defer m.mu.Unlock()
	t, ok := m.tunnels.get(id, now)
	switch {
	case !ok:
		return Tunnel{}, false, nil
	case t.Lost != nil:
		return t.copied(), t.Lost.same(why), nil
	case t.Epoch != seen:
		return t, false, nil
	}
	t.Lost = &why
	m.tunnels.put(id, t, now.Add(ttl))
	m.watchers.tell(TunnelFenced, id)
	return t.copied(), true, nil
}

// same says whether e is what the same call has written.
func (e Ending) same(o Ending) bool {
	return e.Code == o.Code && e.Reason == o.Reason && e.By == o.By && e.At.Equal(o.At)
}

// End is as in Tunnels.
func (m *Memory) End(ctx context.Context, ttl time.Duration, tunnels ...Tunnel) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, t := range tunnels {
		was, ok := m.tunnels.get(t.ID, now)
		if ok && (was.Lost != nil || was.Owner != t.Owner) {
			continue
		}
		t = t.copied()
		if t.Lost == nil {
			t.Lost = new(Ending)
		}
		t.Epoch = max(t.Epoch, was.Epoch)
		m.tunnels.put(t.ID, t, now.Add(ttl))
	}
	return nil
}
