package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// mostEntries bounds the lists of replicas and circuits.
const mostEntries = 10_000

// millis is a ttl in Redis's unit, at least one.
func millis(d time.Duration) int64 { return max((d + time.Millisecond - 1).Milliseconds(), 1) }

// encoded is JSON without a line's end. What the store keeps can always be encoded.
func encoded(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: %v", err))
	}
	return string(raw)
}

func (r *Redis) event(kind Kind, name string) string { return encoded(Event{Kind: kind, Name: name}) }

// unreadable is the error of a record that this version did not write.
func unreadable(op string) error {
	return errs.New(errs.StoreUnavailable, "%s: what the store holds cannot be read", op)
}

// put enters an entry of a list. head is what others want to know the changes of.
func (r *Redis) put(ctx context.Context, o op, list, id string, ttl time.Duration, head string, body any, kind Kind) error {
	answer, err := r.run(ctx, o, "put", r.keys.list(list), encode(id), millis(ttl), head, encoded(body), mostEntries, r.keys.channel(), r.event(kind, id))
	if err != nil {
		return err
	}
	if answer == int64(0) {
		return errs.New(errs.StoreUnavailable, "%s: the store holds %d and takes no more", o.name, mostEntries)
	}
	return nil
}

// leftOut says, once until it is over, that some entries of a list could not be read: the others count all the same.
func (r *Redis) leftOut(list string, entries int) {
	if entries == 0 {
		r.unread.Delete(list)
	} else if _, said := r.unread.LoadOrStore(list, true); !said {
		r.cfg.Logger.Error("the store holds entries that cannot be read, of another version or by another hand; they are left out",
			logging.FieldCode, errs.StoreUnavailable.String(), "list", list, "entries", entries)
	}
}

// listed reads a list.
func listed[T any](ctx context.Context, r *Redis, o op, name string) ([]T, error) {
	answer, err := r.run(ctx, o, "list", r.keys.list(name))
	if err != nil {
		return nil, err
	}
	raw, _ := answer.([]any)
	return entries[T](r, o.name, raw), nil
}

// entries reads those of a list that can be read.
func entries[T any](r *Redis, name string, raw []any) []T {
	list := make([]T, 0, len(raw))
	for _, entry := range raw {
		_, body, _ := strings.Cut(text(entry), "\n")
		var it T
		if json.Unmarshal([]byte(body), &it) == nil {
			list = append(list, it)
		}
	}
	r.leftOut(name, len(raw)-len(list))
	return list
}

func text(answer any) string {
	s, _ := answer.(string)
	return s
}

// Announce is as in Replicas.
func (r *Redis) Announce(ctx context.Context, rep Replica, ttl time.Duration) error {
	return r.put(ctx, op{name: "announce"}, "replicas", rep.ID, ttl, strconv.FormatBool(rep.Draining), rep, ReplicaChanged)
}

// Withdraw is as in Replicas.
func (r *Redis) Withdraw(ctx context.Context, id string) error {
	_, err := r.run(ctx, op{name: "withdraw"}, "drop", r.keys.list("replicas"), encode(id), r.keys.channel(), r.event(ReplicaChanged, id))
	return err
}

// Replicas is as in Replicas. It is tried also while Redis is down.
func (r *Redis) Replicas(ctx context.Context) ([]Replica, error) {
	list, err := listed[Replica](ctx, r, op{name: "replicas", anyway: true}, "replicas")
	slices.SortFunc(list, byName)
	return list, err
}

// epoch is one with as many digits as any other.
func epoch(n uint64) string { return fmt.Sprintf("%020d", n) }

// record is a tunnel's without Lost, and without what the record's first line says.
func record(t Tunnel) string {
	t.Lost = nil
	return encoded(t)
}

// parseTunnel reads what the scripts write.
func parseTunnel(raw string) (t Tunnel, err error) {
	head, rest, _ := strings.Cut(raw, "\n")
	words := strings.Fields(head)
	if len(words) != 3 {
		return t, unreadable("find")
	}
	body, why, _ := strings.Cut(rest, "\n")
	if json.Unmarshal([]byte(body), &t) != nil {
		return t, unreadable("find")
	}
	t.Lost = nil
	if t.Epoch, err = strconv.ParseUint(words[1], 10, 64); err != nil {
		return t, unreadable("find")
	}
	if words[0] == "L" {
		t.Lost = new(Ending)
		if json.NewDecoder(bytes.NewReader([]byte(why))).Decode(t.Lost) != nil {
			return t, unreadable("find")
		}
	}
	return t, nil
}

// Hold is as in Tunnels.
func (r *Redis) Hold(ctx context.Context, ttl time.Duration, tunnels ...Tunnel) (refused []Tunnel, err error) {
	all := make([]invocation, len(tunnels))
	for i, t := range tunnels {
		all[i] = invocation{[]string{r.keys.tunnel(t.ID)}, []any{epoch(t.Epoch), encode(t.Owner), record(t), millis(ttl)}}
	}
	bad := 0
	err = r.runAll(ctx, op{name: "hold"}, "hold", all, func(_ int, answer any) {
		if answer == nil {
			return
		}
		t, unread := parseTunnel(text(answer))
		if unread != nil { // it says nothing about who owns the tunnel, and nothing about the others
			bad++
			return
		}
		refused = append(refused, t)
	})
	r.leftOut("tunnels", bad)
	return refused, err
}

// Find is as in Tunnels. It is tried also while Redis is down.
func (r *Redis) Find(ctx context.Context, id string) (t Tunnel, ok bool, err error) {
	answer, err := r.run(ctx, op{name: "find", anyway: true}, "find", []string{r.keys.tunnel(id)})
	if err != nil || answer == nil {
		return t, false, err
	}
	t, err = parseTunnel(text(answer))
	return t, err == nil, err
}

// Fence is as in Tunnels.
func (r *Redis) Fence(ctx context.Context, id string, seen uint64, why Ending, ttl time.Duration) (t Tunnel, fenced bool, err error) {
	answer, err := r.run(ctx, op{name: "fence"}, "fence", []string{r.keys.tunnel(id)},
		epoch(seen), encoded(why), millis(ttl), r.keys.channel(), r.event(TunnelFenced, id))
	if err != nil || answer == nil {
		return t, false, err
	}
	told, _ := answer.([]any)
	if len(told) != 2 {
		return t, false, unreadable("fence")
	}
	t, err = parseTunnel(text(told[1]))
	return t, err == nil && told[0] == int64(1), err
}

// End is as in Tunnels.
func (r *Redis) End(ctx context.Context, ttl time.Duration, tunnels ...Tunnel) error {
	all := make([]invocation, len(tunnels))
	for i, t := range tunnels {
		why := Ending{}
		if t.Lost != nil {
			why = *t.Lost
		}
		all[i] = invocation{[]string{r.keys.tunnel(t.ID)}, []any{epoch(t.Epoch), encode(t.Owner), record(t), encoded(why), millis(ttl)}}
	}
	return r.runAll(ctx, op{name: "end"}, "end", all, func(int, any) {})
}
