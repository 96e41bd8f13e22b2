package store

import (
	"context"
	"strconv"
	"time"
)

// slotsAtOnce is how many slots of a tenant one script is given.
const slotsAtOnce = 1000

// Take is as in Limits.
func (r *Redis) Take(ctx context.Context, ask Ask) (g Grant, err error) {
	rate := ask.Rate
	answer, err := r.run(ctx, op{name: "take", within: r.cfg.Timeout, once: true}, "take",
		[]string{r.keys.slots(ask.Tenant, ask.Kind), r.keys.opens(ask.Tenant)},
		encode(ask.ID), ask.Limit, millis(ask.Lease), encode(rate.Tier), max(rate.PerMinute, 0), max(rate.Burst, 1), remember.Milliseconds(), maxTiers)
	if err != nil {
		return g, err
	}
	told, _ := answer.([]any)
	if len(told) != 4 {
		return g, unreadable("take")
	}
	held, _ := told[2].(int64)
	g = Grant{Granted: told[0] == int64(1), Full: told[1] == int64(1), Held: int(held)}
	if rate.PerMinute > 0 {
		tokens, err := strconv.ParseFloat(text(told[3]), 64)
		if err != nil {
			return Grant{}, unreadable("take")
		}
		g.standing(rate, tokens)
	}
	return g, nil
}

// bySlots makes one invocation, or several, for each tenant and kind: first, then ids.
func (r *Redis) bySlots(list []Slot, first ...any) []invocation {
	ids := map[string][]any{}
	for _, s := range list {
		key := r.keys.slots(s.Tenant, s.Kind)
		ids[key] = append(ids[key], encode(s.ID))
	}
	var all []invocation
	for key, some := range ids {
		for begin := 0; begin < len(some); begin += slotsAtOnce {
			args := append([]any(nil), first...)
			all = append(all, invocation{[]string{key}, append(args, some[begin:min(begin+slotsAtOnce, len(some))]...)})
		}
	}
	return all
}

// Return is as in Limits.
func (r *Redis) Return(ctx context.Context, slots ...Slot) error {
	return r.runAll(ctx, op{name: "return"}, "return", r.bySlots(slots), func(int, any) {})
}

// Renew is as in Limits.
func (r *Redis) Renew(ctx context.Context, lease time.Duration, slots ...Slot) error {
	return r.runAll(ctx, op{name: "renew"}, "renew", r.bySlots(slots, millis(lease)), func(int, any) {})
}

// Held is as in Limits.
func (r *Redis) Held(ctx context.Context, tenant string) (tunnels, streams int, err error) {
	answer, err := r.run(ctx, op{name: "held"}, "held", []string{r.keys.slots(tenant, TunnelSlots), r.keys.slots(tenant, StreamSlots)})
	if err != nil {
		return 0, 0, err
	}
	told, _ := answer.([]any)
	if len(told) != 2 {
		return 0, 0, unreadable("held")
	}
	first, _ := told[0].(int64)
	second, _ := told[1].(int64)
	return int(first), int(second), nil
}
