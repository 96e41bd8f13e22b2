package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// incarnationTTL is how long a store is the same that nobody asks.
const incarnationTTL = 30 * 24 * time.Hour

// revocationsAtOnce is how many one script is given: some have 4 KiB.
const revocationsAtOnce = 200

// PutCircuit is as in Circuits.
func (r *Redis) PutCircuit(ctx context.Context, c Circuit, ttl time.Duration) error {
	sum := sha256.Sum256([]byte(encoded(c)))
	return r.put(ctx, op{name: "put_circuit"}, "circuits", c.Backend, ttl, hex.EncodeToString(sum[:8]), c, CircuitChanged)
}

// Circuits is as in Circuits; by name.
func (r *Redis) Circuits(ctx context.Context) ([]Circuit, error) {
	list, err := listed[Circuit](ctx, r, op{name: "circuits"}, "circuits")
	slices.SortFunc(list, byBackend)
	return list, err
}

// ClaimProbe is as in Circuits.
func (r *Redis) ClaimProbe(ctx context.Context, backend, by string, ttl time.Duration) (claimed bool, err error) {
	answer, err := r.run(ctx, op{name: "claim_probe"}, "claim", []string{r.keys.probe(backend)}, encode(by), millis(ttl))
	return answer == int64(1), err
}

// ReleaseProbe is as in Circuits.
func (r *Redis) ReleaseProbe(ctx context.Context, backend, by string) error {
	_, err := r.run(ctx, op{name: "release_probe"}, "release", []string{r.keys.probe(backend)}, encode(by))
	return err
}

// PutRevocations is as in Revocations.
func (r *Redis) PutRevocations(ctx context.Context, list ...Revocation) error {
	full := false
	for begin := 0; begin < len(list); begin += revocationsAtOnce {
		args := []any{random(), MaxRevocations, r.keys.channel()}
		for _, rev := range list[begin:min(begin+revocationsAtOnce, len(list))] {
			removed := "0"
			if rev.Removed {
				removed = "1"
			}
			args = append(args, encode(rev.ID), rev.Until.UnixMilli(), removed, encoded(rev), r.event(RevocationChanged, rev.ID))
		}
		answer, err := r.run(ctx, op{name: "put_revocations"}, "revoke", r.keys.revocations(), args...)
		if err != nil {
			return err
		}
		full = full || answer == int64(0)
	}
	if full {
		return errFull()
	}
	return nil
}

// Revocations is as in Revocations; by id.
func (r *Redis) Revocations(ctx context.Context, known string) (list []Revocation, version string, err error) {
	answer, err := r.run(ctx, op{name: "revocations"}, "revoked", r.keys.revocations(), known)
	if err != nil {
		return nil, "", err
	}
	told, _ := answer.([]any)
	if len(told) == 0 {
		return nil, "", unreadable("revocations")
	}
	if version = text(told[0]); version == known {
		return nil, known, nil
	}
	list = entries[Revocation](r, "revocations", told[1:])
	slices.SortFunc(list, byID)
	return list, version, nil
}

// PinHostKey is as in HostKeys.
func (r *Redis) PinHostKey(ctx context.Context, address, key string) (pinned string, err error) {
	answer, err := r.run(ctx, op{name: "pin_host_key"}, "pin", []string{r.keys.hostKey(address)}, key, hostKeyTTL.Milliseconds())
	return text(answer), err
}

// Incarnation is as in Store. That of a cluster is another one also when one of its masters has lost what it held.
func (r *Redis) Incarnation(ctx context.Context) (string, error) {
	var all []invocation
	for _, tag := range r.tags() {
		all = append(all, invocation{[]string{r.keys.in(tag, ":i")}, []any{random(), incarnationTTL.Milliseconds()}})
	}
	values := make([]string, len(all))
	if err := r.runAll(ctx, op{name: "incarnation"}, "pin", all, func(i int, answer any) { values[i] = text(answer) }); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.Join(values, " ")))
	return hex.EncodeToString(sum[:16]), nil
}
