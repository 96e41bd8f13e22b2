package session

import (
	"context"
	"slices"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// turns lets so many act at once. Others wait, and the next one is of the tenant that has the fewest: a tenant that floods
// waits for itself.
type turns struct {
	most int

	mu      sync.Mutex
	held    map[string]int // by tenant
	taken   int            // of all tenants
	waiting []*turn        // first come first
	queued  map[string]int // of waiting, by tenant
}

type turn struct {
	tenant string
	given  chan struct{}
}

const (
	mostWaiting = 4096            // for turns
	mostQueued  = mostWaiting / 4 // of one tenant
	turnWait    = 4 * time.Second // less than a sidecar waits for its handshake, so that it hears why
)

func newTurns(most int) *turns {
	return &turns{most: most, held: map[string]int{}, queued: map[string]int{}}
}

// take waits for a turn of a tenant, which give ends. Without one the error is OwnerUnknown: nothing is said about the tunnel.
func (t *turns) take(ctx context.Context, tenant string) (give func(), err error) {
	one, err := t.enter(tenant)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	select {
	case <-one.given:
	case <-ctx.Done():
		if t.leave(one) {
			return nil, errs.New(errs.OwnerUnknown, "so many tunnels are being looked for that this one's turn has not come")
		}
	}
	return sync.OnceFunc(func() { t.give(tenant) }), nil
}

func (t *turns) enter(tenant string) (*turn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) >= mostWaiting || t.queued[tenant] >= mostQueued {
		return nil, errs.New(errs.OwnerUnknown, "%d tunnels are being looked for already, %d of them this tenant's", t.taken+len(t.waiting), t.held[tenant]+t.queued[tenant])
	}
	one := &turn{tenant: tenant, given: make(chan struct{})}
	t.waiting = append(t.waiting, one)
	t.queued[tenant]++
	t.next()
	return one, nil
}

// leave gives up waiting; false: the turn has come just now.
func (t *turns) leave(one *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.Index(t.waiting, one)
	if at < 0 {
		return false
	}
	t.unqueue(at)
	return true
}

func (t *turns) give(tenant string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	less(t.held, tenant)
	t.next()
}

// next gives turns as long as there are any. Called with mu held.
func (t *turns) next() {
	for t.taken < t.most && len(t.waiting) > 0 {
		first := 0
		for i, one := range t.waiting {
			if t.held[one.tenant] < t.held[t.waiting[first].tenant] {
				first = i
			}
			if t.held[t.waiting[first].tenant] == 0 {
				break
			}
		}
		one := t.waiting[first]
		t.unqueue(first)
		t.taken++
		t.held[one.tenant]++
		close(one.given)
	}
}

func (t *turns) unqueue(at int) {
	less(t.queued, t.waiting[at].tenant)
	t.waiting = slices.Delete(t.waiting, at, at+1)
}

// less counts down, and forgets what is zero.
func less(counts map[string]int, name string) {
	if counts[name]--; counts[name] == 0 {
		delete(counts, name)
	}
}
