package store

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"fairlead/shared/errs"
)

// hostKeyTTL is how long a key of first use is kept when nobody asks for it.
const hostKeyTTL = 90 * 24 * time.Hour

// PutCircuit is as in Circuits.
func (m *Memory) PutCircuit(ctx context.Context, c Circuit, ttl time.Duration) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	was, ok := m.circuits.get(c.Backend, now)
	m.circuits.put(c.Backend, c, now.Add(ttl))
	if !ok || !was.same(c) {
		m.watchers.tell(CircuitChanged, c.Backend)
	}
	return nil
}

func (c Circuit) same(o Circuit) bool {
	if !c.Since.Equal(o.Since) || !c.Retry.Equal(o.Retry) || !c.Changed.Equal(o.Changed) {
		return false
	}
	c.Since, c.Retry, c.Changed = o.Since, o.Retry, o.Changed
	return c == o
}

// Circuits is as in Circuits; by name.
func (m *Memory) Circuits(ctx context.Context) ([]Circuit, error) {
	now, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	list := m.circuits.list(now)
	slices.SortFunc(list, byBackend)
	return list, nil
}

func byBackend(a, b Circuit) int { return cmp.Compare(a.Backend, b.Backend) }

// ClaimProbe is as in Circuits.
func (m *Memory) ClaimProbe(ctx context.Context, backend, by string, ttl time.Duration) (claimed bool, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	if has, ok := m.probes.get(backend, now); ok && has != by {
		return false, nil
	}
	m.probes.put(backend, by, now.Add(ttl))
	return true, nil
}

// ReleaseProbe is as in Circuits.
func (m *Memory) ReleaseProbe(ctx context.Context, backend, by string) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if has, ok := m.probes.get(backend, now); ok && has == by {
		delete(m.probes, backend)
	}
	return nil
}

// PutRevocations is as in Revocations.
func (m *Memory) PutRevocations(ctx context.Context, list ...Revocation) error {
	now, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	for _, r := range list {
		was, ok := m.revoked.get(r.ID, now)
		if !now.Before(r.Until) || ok && (was.same(r) || was.Removed && !r.Removed) {
			continue
		}
		if !ok && len(m.revoked) >= MaxRevocations {
			if m.revoked.sweep(now); len(m.revoked) >= MaxRevocations {
				return errFull()
			}
		}
		r.Data = bytes.Clone(r.Data)
		m.revoked.put(r.ID, r, r.Until)
		m.version++
		m.watchers.tell(RevocationChanged, r.ID)
	}
	return nil
}

func (r Revocation) same(o Revocation) bool {
	return r.ID == o.ID && r.Until.Equal(o.Until) && r.Removed == o.Removed && bytes.Equal(r.Data, o.Data)
}

func errFull() error {
	return errs.New(errs.StoreUnavailable, "the store holds %d revocations and takes no more", MaxRevocations)
}

// Revocations is as in Revocations; by id.
func (m *Memory) Revocations(ctx context.Context, known string) (list []Revocation, version string, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return nil, "", err
	}
	defer m.mu.Unlock()
	if version = strconv.FormatUint(m.version, 10); version == known {
		return nil, known, nil
	}
	list = m.revoked.list(now)
	for i := range list {
		list[i].Data = bytes.Clone(list[i].Data)
	}
	slices.SortFunc(list, byID)
	return list, version, nil
}

func byID(a, b Revocation) int { return cmp.Compare(a.ID, b.ID) }

// PinHostKey is as in HostKeys.
func (m *Memory) PinHostKey(ctx context.Context, address, key string) (pinned string, err error) {
	now, err := m.enter(ctx)
	if err != nil {
		return "", err
	}
	defer m.mu.Unlock()
	if has, ok := m.keys.get(address, now); ok {
		key = has
	}
	m.keys.put(address, key, now.Add(hostKeyTTL))
	return key, nil
}
