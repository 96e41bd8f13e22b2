package backend

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// pinWithin is how long a handshake waits for the shared store, which may be down or far away.
const pinWithin = 500 * time.Millisecond

// firstKey is a key that was trusted on first use, here or at another replica.
type firstKey struct {
	backend string
	key     ssh.PublicKey
	pinned  bool          // the store holds it; always without a store
	dropped ssh.PublicKey // what this replica trusted before it heard of key; nil: nothing
}

// firstUse trusts the first key that this gateway, or with a store any replica, has seen at the address.
func (h *hostKeys) firstUse(ctx context.Context, p presented) verdict {
	known := h.known(ctx, p.b.Address)
	if known.key == nil {
		var fresh bool
		if known, fresh = h.trust(p, h.pin(ctx, p.b.Address, firstKey{backend: p.b.Name, key: p.key})); fresh {
			return verdict{kind: HostKeyFirstUse}
		}
	}
	if !same(known.key, p.key) {
		return p.changed([]string{describeKey(known.key)}, "the one of the first use, "+describeKey(known.key))
	}
	return verdict{kind: hostKeyKnown}
}

// trust remembers the presented key, unless another one is pinned, or another handshake was faster: then it returns false and
// what counts.
func (h *hostKeys) trust(p presented, pinned firstKey) (known firstKey, fresh bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known = h.first[p.b.Address]; known.key != nil {
		return known, false
	}
	if !same(pinned.key, p.key) {
		return pinned, false
	}
	h.first[p.b.Address] = pinned
	if p.b.KnownHostsFile != "" {
		if err := appendKnownHost(p.b.KnownHostsFile, p.b.Address, p.key); err != nil {
			// The key is remembered all the same, until the process ends.
			h.log.Error("the host key could not be written to known_hosts_file", logging.FieldBackend, p.b.Name, logging.FieldError, err.Error())
		}
	}
	return pinned, true
}

// overruled refuses a key that the file holds because this replica trusted it on first use, when another one counts.
func (h *hostKeys) overruled(ctx context.Context, p presented) verdict {
	known := h.known(ctx, p.b.Address)
	if known.dropped == nil || !same(known.dropped, p.key) {
		return verdict{kind: hostKeyKnown}
	}
	return p.changed([]string{describeKey(known.key)}, "the one that another replica saw first, "+describeKey(known.key))
}

// known is the key of the first use, if there was one. If the store could not be asked then, it is asked now.
func (h *hostKeys) known(ctx context.Context, address string) firstKey {
	h.mu.Lock()
	first := h.first[address]
	h.mu.Unlock()
	if first.key == nil || first.pinned {
		return first
	}
	return h.settle(address, h.pin(ctx, address, first))
}

// settle takes over what the store has said about a key that was trusted, and returns what counts.
func (h *hostKeys) settle(address string, asked firstKey) firstKey {
	h.mu.Lock()
	before := h.first[address]
	news := asked.pinned && (!before.pinned || !same(before.key, asked.key))
	if news {
		h.first[address] = asked
	} else {
		asked = before
	}
	h.mu.Unlock()
	if news && !same(before.key, asked.key) {
		h.conflict(address, asked)
	}
	return asked
}

// same compares keys; certificates are not known by first use.
func same(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// pin asks the store for the key of the first replica that saw one. Without an answer our own counts: a store that is
// down must not stop the traffic.
func (h *hostKeys) pin(ctx context.Context, address string, ours firstKey) firstKey {
	if h.store == nil {
		ours.pinned = true
		return ours
	}
	first, err := h.ask(ctx, address, ours)
	if err != nil {
		h.log.Warn("the host key could not be compared with other replicas", append(logging.Error(err), logging.FieldComponent, "backend", logging.FieldBackend, ours.backend)...)
		return ours
	}
	return first
}

// ask pins our key unless another one is, and returns which one counts.
func (h *hostKeys) ask(ctx context.Context, address string, ours firstKey) (firstKey, error) {
	ctx, cancel := context.WithTimeout(ctx, pinWithin)
	defer cancel()
	line, err := h.store.PinHostKey(ctx, address, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ours.key))))
	if err != nil {
		return ours, err
	}
	pinned, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return ours, errs.New(errs.Internal, "the shared store holds no host key where one should be")
	}
	ours.pinned = true
	if !same(pinned, ours.key) {
		ours.dropped, ours.key = ours.key, pinned
	}
	return ours, nil
}

// RepinHostKeys has the shared store hold what this gateway has trusted on first use, for when it has lost everything, and
// keeps it from forgetting: call it then, when it is back after it was away, and once a day. Where the store has another key
// by then that one counts, which other replicas go by: ours is dropped, which is told as an event of kind HostKeyConflict, and
// is refused from then on as a changed key, also when known_hosts_file holds it. Errors are the store's, for as many
// backends as it could not be asked about.
func (s *Set) RepinHostKeys(ctx context.Context) error { return s.keys.repin(ctx) }

func (h *hostKeys) repin(ctx context.Context) error {
	if h.store == nil {
		return nil
	}
	h.mu.Lock()
	all := make(map[string]firstKey, len(h.first))
	for address, first := range h.first {
		all[address] = first
	}
	h.mu.Unlock()
	var problems []error
	for address, ours := range all {
		if ctx.Err() != nil {
			return errors.Join(append(problems, errs.Wrap(errs.Canceled, ctx.Err(), "not all host keys were compared with other replicas"))...)
		}
		first, err := h.ask(ctx, address, ours)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		h.settle(address, first)
	}
	return errors.Join(problems...)
}

// conflict tells that what was trusted here is not what counts.
func (h *hostKeys) conflict(address string, first firstKey) {
	err := errs.New(errs.HostKeyRefused, "the host key of backend %q (%s) was trusted on first use as %s, but another replica saw %s: that one counts from now on",
		first.backend, address, describeKey(first.dropped), describeKey(first.key))
	h.log.Error("REPLICAS HAVE SEEN DIFFERENT HOST KEYS OF A BACKEND: somebody may be in between, or the server was set up anew",
		append(logging.Error(err), logging.FieldComponent, "backend", logging.FieldBackend, first.backend, logging.FieldPeer, address)...)
	if h.event != nil {
		h.event(HostKeyEvent{Kind: HostKeyConflict, Backend: first.backend, Address: address, Presented: describeKey(first.dropped), Expected: []string{describeKey(first.key)}, Err: err})
	}
}
