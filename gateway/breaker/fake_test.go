package breaker

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/afex/hystrix-go/hystrix"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// commonStore is a store as all replicas see it: the last put counts, and claims end.
type commonStore struct {
	mu       sync.Mutex
	circuits map[string]Circuit
	expires  map[string]time.Time
	claims   map[string]claim
	puts     int
}

func newCommonStore() *commonStore {
	return &commonStore{circuits: map[string]Circuit{}, expires: map[string]time.Time{}, claims: map[string]claim{}}
}

func (s *commonStore) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.circuits)
	clear(s.claims)
}

func (s *commonStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.puts
}

// access is the store as one replica reaches it.
type access struct {
	*commonStore
	down atomic.Bool
	slow atomic.Bool // what is asked is done, but the answer comes late
}

func (a *access) ask(ctx context.Context) error {
	if a.down.Load() {
		return errs.New(errs.StoreUnavailable, "down")
	}
	return ctx.Err()
}

// answer keeps a probe waiting. Others it tells at once what they would find out later: a breaker that opens stops simulated
// time for whoever waits for its lock, so that nobody may wake meanwhile.
func (a *access) answer(ctx context.Context) error {
	if !a.slow.Load() {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= claimWithin {
		<-ctx.Done()
	}
	return errs.New(errs.StoreUnavailable, "slow")
}

func (a *access) PutCircuit(ctx context.Context, c Circuit, ttl time.Duration) error {
	if err := a.ask(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	a.puts++
	a.circuits[c.Backend], a.expires[c.Backend] = c, time.Now().Add(ttl)
	a.mu.Unlock()
	return a.answer(ctx)
}

func (a *access) Circuits(ctx context.Context) ([]Circuit, error) {
	if err := a.ask(ctx); err != nil {
		return nil, err
	}
	a.mu.Lock()
	maps.DeleteFunc(a.circuits, func(name string, _ Circuit) bool { return time.Now().After(a.expires[name]) })
	list := slices.Collect(maps.Values(a.circuits))
	a.mu.Unlock()
	return list, a.answer(ctx)
}

func (a *access) ClaimProbe(ctx context.Context, backend, by string, ttl time.Duration) (bool, error) {
	if err := a.ask(ctx); err != nil {
		return false, err
	}
	a.mu.Lock()
	free := !time.Now().Before(a.claims[backend].until)
	if free {
		a.claims[backend] = claim{by: by, until: time.Now().Add(ttl)}
	}
	a.mu.Unlock()
	if err := a.answer(ctx); err != nil {
		return false, err
	}
	return free, nil
}

func (a *access) ReleaseProbe(ctx context.Context, backend, by string) error {
	if err := a.ask(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	if a.claims[backend].by == by {
		delete(a.claims, backend)
	}
	a.mu.Unlock()
	return a.answer(ctx)
}

// member is a replica's breaker, with what it has told.
type member struct {
	*Breaker
	store *access
	log   *testbed.LogBuffer

	mu   sync.Mutex
	told []Change
}

// bubble runs do in a bubble of simulated time with the breakers of replicas r0, r1 and so on, which run. What hystrix never
// ends is made outside.
func bubble(t *testing.T, n int, cfg Config, do func(t *testing.T, store *commonStore, all []*member)) {
	var prefixes []string
	for range n {
		prefix := rand.Text()
		_, _, err := hystrix.GetCircuit(prefix + "db")
		require.NoError(t, err)
		prefixes = append(prefixes, prefix)
	}
	synctest.Test(t, func(t *testing.T) {
		store := newCommonStore()
		ctx, cancel := context.WithCancel(context.Background())
		var work sync.WaitGroup
		defer work.Wait()
		defer cancel()
		var all []*member
		for i, prefix := range prefixes {
			m := newMember(t, i, store, cfg)
			m.prefix = prefix
			work.Go(func() { _ = m.Run(ctx) })
			defer m.Close()
			all = append(all, m)
		}
		do(t, store, all)
	})
}

func newMember(t *testing.T, i int, store *commonStore, cfg Config) *member {
	m := &member{store: &access{commonStore: store}, log: new(testbed.LogBuffer)}
	cfg.Shared, cfg.Replica, cfg.Logger = m.store, "r"+strconv.Itoa(i), slog.New(slog.NewTextHandler(m.log, nil))
	cfg.OnChange = func(c Change) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.told = append(m.told, c)
	}
	var err error
	m.Breaker, err = New(cfg)
	require.NoError(t, err)
	return m
}

// fail calls the backend in vain, and lets the others hear of each call before the next.
func (m *member) fail(n int) {
	for range n {
		synctest.Wait()
		fail(m.Breaker, 1)
	}
	synctest.Wait()
}

// changes are reasons and who made them, as OnChange was told.
func (m *member) changes() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, c := range m.told {
		all = append(all, string(c.Reason)+" by "+c.By)
	}
	return strings.Join(all, ", ")
}

func syncAll(t require.TestingT, all ...*member) {
	for _, m := range all {
		require.NoError(t, m.Sync(context.Background()))
	}
}
