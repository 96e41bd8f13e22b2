package app

import (
	"context"
	"time"

	"fairlead/gateway/auth"
	"fairlead/gateway/breaker"
	"fairlead/gateway/limit"
	"fairlead/gateway/store"
)

// The store, in the words of the features that share by it.

// sharedLimits is limit.Shared.
type sharedLimits struct{ store.Store }

func (s sharedLimits) Take(ctx context.Context, a limit.Ask) (limit.Grant, error) {
	g, err := s.Store.Take(ctx, store.Ask{Slot: store.Slot(a.Slot), Limit: a.Limit, Rate: store.Rate(a.Rate), Lease: a.Lease})
	return limit.Grant(g), err
}

func (s sharedLimits) Return(ctx context.Context, slots ...limit.Slot) error {
	return s.Store.Return(ctx, storeSlots(slots)...)
}

func (s sharedLimits) Renew(ctx context.Context, lease time.Duration, slots ...limit.Slot) error {
	return s.Store.Renew(ctx, lease, storeSlots(slots)...)
}

func storeSlots(slots []limit.Slot) []store.Slot {
	list := make([]store.Slot, len(slots))
	for i, s := range slots {
		list[i] = store.Slot(s)
	}
	return list
}

// sharedCircuits is breaker.Shared.
type sharedCircuits struct{ store.Store }

func (s sharedCircuits) PutCircuit(ctx context.Context, c breaker.Circuit, ttl time.Duration) error {
	return s.Store.PutCircuit(ctx, store.Circuit(c), ttl)
}

func (s sharedCircuits) Circuits(ctx context.Context) ([]breaker.Circuit, error) {
	list, err := s.Store.Circuits(ctx)
	circuits := make([]breaker.Circuit, len(list))
	for i, c := range list {
		circuits[i] = breaker.Circuit(c)
	}
	return circuits, err
}

// sharedRevocations is auth.SharedRevocations.
type sharedRevocations struct{ store.Store }

func (s sharedRevocations) PutRevocations(ctx context.Context, list ...auth.SharedRevocation) error {
	all := make([]store.Revocation, len(list))
	for i, r := range list {
		all[i] = store.Revocation(r)
	}
	return s.Store.PutRevocations(ctx, all...)
}

func (s sharedRevocations) Revocations(ctx context.Context, known string) ([]auth.SharedRevocation, string, error) {
	list, version, err := s.Store.Revocations(ctx, known)
	if list == nil { // nothing has changed
		return nil, version, err
	}
	all := make([]auth.SharedRevocation, len(list))
	for i, r := range list {
		all[i] = auth.SharedRevocation(r)
	}
	return all, version, err
}
