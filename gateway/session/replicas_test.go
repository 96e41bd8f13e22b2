package session_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// replicas are several registries around one store, with a network between them and to it that can be cut.
type replicas struct {
	t      *testing.T
	shared store.Store
	all    []*replica
	apart  map[[2]int]bool // pairs of replicas that do not reach each other
}

// replica is one registry. A crash replaces it by another one of the same name.
type replica struct {
	*world
	c     *replicas
	n     int
	name  string
	life  int
	self  store.Replica
	store *cutStore
	slow  func(ctx context.Context, id link.ID) error // called before a connection is brought elsewhere; nil: nothing
	stop  context.CancelFunc
	ended chan struct{}
}

// cutStore is the store as one replica reaches it, or does not.
type cutStore struct {
	store.Store
	cut atomic.Bool
}

func (s *cutStore) err() error {
	if s.cut.Load() {
		return errs.New(errs.StoreUnavailable, "cut off")
	}
	return nil
}

func (s *cutStore) Hold(ctx context.Context, ttl time.Duration, tunnels ...store.Tunnel) ([]store.Tunnel, error) {
	if err := s.err(); err != nil {
		return nil, err
	}
	return s.Store.Hold(ctx, ttl, tunnels...)
}

func (s *cutStore) Find(ctx context.Context, id string) (store.Tunnel, bool, error) {
	if err := s.err(); err != nil {
		return store.Tunnel{}, false, err
	}
	return s.Store.Find(ctx, id)
}

func (s *cutStore) Fence(ctx context.Context, id string, seen uint64, why store.Ending, ttl time.Duration) (store.Tunnel, bool, error) {
	if err := s.err(); err != nil {
		return store.Tunnel{}, false, err
	}
	return s.Store.Fence(ctx, id, seen, why, ttl)
}

func (s *cutStore) End(ctx context.Context, ttl time.Duration, tunnels ...store.Tunnel) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.Store.End(ctx, ttl, tunnels...)
}

func (s *cutStore) Replicas(ctx context.Context) ([]store.Replica, error) {
	if err := s.err(); err != nil {
		return nil, err
	}
	return s.Store.Replicas(ctx)
}

// Bring hands a connection over inside the process, as gateway/peer does between processes.
func (r *replica) Bring(ctx context.Context, to store.Replica, a session.Arrival, hs *link.Handshake) (func(context.Context) error, error) {
	if r.slow != nil {
		id, _ := hs.Tunnel()
		if err := r.slow(ctx, id); err != nil {
			return nil, err
		}
	}
	for _, other := range r.c.all {
		if other.self.Address != to.Address {
			continue
		}
		if r.c.apart[[2]int{r.n, other.n}] || r.c.apart[[2]int{other.n, r.n}] {
			break
		}
		if to.ID != "" && other.self.ID != to.ID {
			return nil, errs.New(errs.OwnerGone, "another process")
		}
		wanted, _ := hs.Tunnel()
		a.Via = r.self.Name
		if err := other.Owns(wanted, a); err != nil {
			return nil, err
		}
		moved, err := link.Transferred(a.Conn, hs.Transfer())
		if err != nil {
			return nil, err
		}
		return func(context.Context) error {
			other.Receive(a, moved)
			return nil
		}, nil
	}
	return nil, errs.New(errs.OwnerUnreachable, "nobody at %s", to.Address)
}

func newReplicas(t *testing.T, n int) *replicas {
	c := &replicas{t: t, shared: store.NewMemory(store.MemoryConfig{}), apart: map[[2]int]bool{}}
	for i := range n {
		c.all = append(c.all, &replica{c: c, n: i, name: fmt.Sprintf("gw-%d", i)})
		c.all[i].start()
	}
	c.know()
	return c
}

func (r *replica) start() {
	r.life++
	r.self = store.Replica{ID: fmt.Sprintf("%s/%d.%d", r.name, r.n, r.life), Name: r.name, Address: fmt.Sprintf("gw-%d:8444", r.n), Started: time.Now()}
	r.store = &cutStore{Store: r.c.shared}
	r.world = newWorld(r.c.t, func(cfg *session.Config, _ *session.OpenerConfig) {
		cfg.Link.Replica = r.name
		cfg.Replicas = session.Replicas{Store: r.store, Self: r.self, Peers: r}
	})
	ctx, cancel := context.WithCancel(context.Background())
	r.stop, r.ended = cancel, make(chan struct{})
	go func() {
		defer close(r.ended)
		_ = r.Share(ctx)
	}()
}

// crash ends a replica without a word to the store, and starts another one in its place.
func (r *replica) crash() {
	r.store.cut.Store(true)
	r.end()
	r.start()
}

func (r *replica) end() {
	r.stop()
	<-r.ended
	r.close()
}

// know lets every replica that reaches the store see who is there.
func (c *replicas) know() {
	var list []store.Replica
	for _, r := range c.all {
		if !r.store.cut.Load() {
			require.NoError(c.t, c.shared.Announce(context.Background(), r.self, 15*time.Second))
		}
	}
	list, err := c.shared.Replicas(context.Background())
	require.NoError(c.t, err)
	for _, r := range c.all {
		if !r.store.cut.Load() {
			r.Know(list)
		}
	}
}

func (c *replicas) close() {
	for _, r := range c.all {
		r.end()
	}
	require.NoError(c.t, c.shared.Close())
}

func (c *replicas) apartFrom(a, b int, apart bool) { c.apart[[2]int{a, b}] = apart }

// over says what a sidecar does when its tunnel is gone, and lets everything settle.
func (s *sidecar) over() {
	s.Close(nil)
	s.Wait()
	synctest.Wait()
}

func inReplicas(t *testing.T, n int, f func(t *testing.T, c *replicas)) {
	synctest.Test(t, func(t *testing.T) {
		c := newReplicas(t, n)
		f(t, c)
		c.close()
	})
}

// Verifies: R1.7, R8.5
func TestResumeAtAnotherReplica(t *testing.T) {
	inReplicas(t, 3, func(t *testing.T, c *replicas) {
		owner := c.all[0]
		s := owner.mustConnect(alice())
		st := s.open(t)
		for i := range 6 {
			_, err := fmt.Fprintf(st, "part %d;", i)
			require.NoError(t, err)
			s.cut()
			synctest.Wait()
			require.NoError(t, c.all[i%3].resume(s, alice()))
			synctest.Wait()
			via := ""
			if i%3 != 0 {
				via = c.all[i%3].self.Name
			}
			assert.Equal(t, via, owner.List()[0].Via)
			assert.Equal(t, "gw-0", s.Replica())
		}
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, "part 0;part 1;part 2;part 3;part 4;part 5;", string(got))
		assert.True(t, owner.metric(`fairlead_gateway_resumes_total{kind="same"} 2`))
		assert.True(t, owner.metric(`fairlead_gateway_resumes_total{kind="relayed"} 4`))
		for _, other := range c.all[1:] {
			assert.Empty(t, other.List(), "a tunnel never changes hands")
		}
		s.over()
	})
}

// Verifies: R8.5
func TestAnOwnerThatHasRestarted(t *testing.T) {
	for _, at := range []int{0, 1} {
		inReplicas(t, 2, func(t *testing.T, c *replicas) {
			s := c.all[0].mustConnect(alice())
			st := s.open(t)
			s.cut()
			c.all[0].crash()
			err := c.all[at].resume(s, alice())
			require.ErrorIs(t, err, errs.OwnerGone, "asked at %d", at)
			assert.Contains(t, err.Error(), "gw-0 has restarted")
			assert.True(t, c.all[at].metric("fairlead_gateway_tunnels_lost_total 1"))
			found, ok, err := c.shared.Find(t.Context(), s.Name())
			require.NoError(t, err)
			require.True(t, ok)
			assert.Equal(t, errs.OwnerGone, found.Lost.Code, "it was given up before it was told")
			assert.ErrorIs(t, c.all[1-at].resume(s, alice()), errs.OwnerGone, "and everybody says so")
			st.Reset(nil)
			s.over()
		})
	}
}

// A directory that is older than the owner does not make it one that was replaced.
//
// Verifies: R1.7, R8.5
func TestAnOwnerThatIsNewerThanTheDirectory(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		require.NoError(t, c.shared.Withdraw(t.Context(), owner.self.ID))
		owner.crash()
		require.NoError(t, c.shared.Announce(t.Context(), owner.self, 15*time.Second)) // of which the other one has not heard
		s := owner.mustConnect(alice())
		st := s.open(t)
		s.cut()
		require.NoError(t, other.resume(s, alice()))
		require.NoError(t, st.CloseWrite())
		_, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Len(t, owner.List(), 1)
		s.leave()
	})
}

// Replicas that were given one name are told so, and do not give up each other's tunnels.
func TestReplicasOfOneName(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		first, second := c.all[0], c.all[1]
		second.end()
		require.NoError(t, c.shared.Withdraw(t.Context(), second.self.ID))
		pass(time.Second)
		second.name = first.name
		second.start()
		c.know()
		assert.Contains(t, first.log.String(), "ANOTHER REPLICA HAS THE NAME OF THIS ONE")
		assert.NotContains(t, second.log.String(), "ANOTHER REPLICA", "it may have taken the place of the other one")
		pass(2 * time.Minute)
		c.know()
		c.know()
		for _, r := range c.all {
			assert.Equal(t, 1, strings.Count(r.log.String(), "ANOTHER REPLICA"), "once")
		}
		s := first.mustConnect(alice())
		s.cut()
		require.NoError(t, second.resume(s, alice()))
		s.leave()
	})
}

// Verifies: R8.5
func TestAnOwnerThatCannotBeReached(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		s := owner.mustConnect(alice())
		st := s.open(t)
		s.cut()
		synctest.Wait()
		c.apartFrom(0, 1, true)
		err := other.resume(s, alice())
		require.ErrorIs(t, err, errs.OwnerUnreachable)
		owner.Fenced(s.Name())
		synctest.Wait()
		assert.Empty(t, owner.List(), "the owner lets go of it")
		assert.True(t, owner.metric("fairlead_gateway_lease_losses_total 1"))
		assert.Contains(t, owner.log.String(), "FL-S435")
		assert.ErrorIs(t, owner.resume(s, alice()), errs.OwnerUnreachable, "and says the same from then on")
		st.Reset(nil)
		s.over()
	})
}

func TestAnOwnerThatDoesNotHearOfItLearnsByItsLease(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		s := owner.mustConnect(alice())
		s.cut()
		c.apartFrom(0, 1, true)
		owner.store.cut.Store(true)
		require.ErrorIs(t, other.resume(s, alice()), errs.OwnerUnreachable)
		pass(30 * time.Second)
		assert.Len(t, owner.List(), 1, "it cannot know")
		owner.store.cut.Store(false)
		pass(20 * time.Second)
		synctest.Wait()
		assert.Empty(t, owner.List())
		s.over()
	})
}

// A lane that was promised is not taken away: whoever was told that the tunnel is lost is told so once and for all.
func TestTheLeaseIsLookedAtBeforeALaneIsTaken(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		s := owner.mustConnect(alice())
		s.cut()
		synctest.Wait()
		c.apartFrom(0, 1, true)
		require.ErrorIs(t, other.resume(s, alice()), errs.OwnerUnreachable)
		require.ErrorIs(t, owner.resume(s, alice()), errs.OwnerUnreachable, "before the owner has heard of it")
		synctest.Wait()
		assert.Empty(t, owner.List())
		s.over()
	})
}

// Verifies: R4.1
func TestNobodyElseGivesATunnelUp(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		s := owner.mustConnect(alice())
		s.cut()
		c.apartFrom(0, 1, true)
		mallory := alice()
		mallory.Tenant = "payments/other"
		err := other.resume(s, mallory) // even with the tunnel's key
		require.ErrorIs(t, err, errs.TunnelUnknown)
		assert.NotContains(t, err.Error(), "payments")
		assert.NotContains(t, err.Error(), "gw-0", "whose tunnel it is, is nobody's business")
		assert.True(t, other.metric("fairlead_gateway_resumes_refused_total 1"))
		require.NoError(t, owner.resume(s, alice()))
		s.over()
	})
}

// Verifies: R8.5
func TestATunnelThatEndedIsSaidToHaveEnded(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		s := c.all[0].mustConnect(alice())
		s.cut()
		require.True(t, c.all[0].End(s.Name(), errs.New(errs.ShuttingDown, "an operator ended the tunnel")))
		synctest.Wait()
		for _, r := range c.all {
			err := r.resume(s, alice())
			require.ErrorIs(t, err, errs.TunnelUnknown)
			assert.Contains(t, err.Error(), "an operator ended the tunnel")
			assert.Contains(t, err.Error(), "gw-0")
		}
		s.over()
	})
}

func TestWithoutTheStoreReplicasAskEachOther(t *testing.T) {
	inReplicas(t, 3, func(t *testing.T, c *replicas) {
		s := c.all[0].mustConnect(alice())
		st := s.open(t)
		for _, r := range c.all {
			r.store.cut.Store(true)
		}
		for i := range 6 {
			_, err := fmt.Fprintf(st, "%d", i)
			require.NoError(t, err)
			s.cut()
			require.NoError(t, c.all[i%3].resume(s, alice()))
			synctest.Wait()
		}
		require.NoError(t, st.CloseWrite())
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, "012345", string(got))

		s.cut()
		c.apartFrom(0, 2, true)
		require.ErrorIs(t, c.all[2].resume(s, alice()), errs.OwnerUnknown, "one did not answer: nothing is given up")
		c.apartFrom(0, 2, false)
		require.NoError(t, c.all[2].resume(s, alice()))
		s.leave()
		synctest.Wait()
		require.ErrorIs(t, c.all[2].resume(s, alice()), errs.TunnelUnknown, "all have answered")
		for _, r := range c.all {
			r.store.cut.Store(false)
		}
	})
}

func TestAReplicaThatIsMissingForAMomentCounts(t *testing.T) {
	inReplicas(t, 1, func(t *testing.T, c *replicas) {
		r := c.all[0]
		three := []store.Replica{r.self, {ID: "b/1", Name: "b"}, {ID: "c/1", Name: "c"}}
		assert.Equal(t, 3, r.Know(three))
		pass(time.Second)
		assert.Equal(t, 3, r.Know(three[:1]), "the store was emptied")
		assert.Equal(t, 3, r.Know([]store.Replica{r.self, {ID: "b/2", Name: "b"}}), "one of them has restarted")
		pass(time.Hour)
		assert.Equal(t, 3, r.Know([]store.Replica{r.self, {ID: "b/2", Name: "b"}}), "the store was away")
		for range 12 {
			pass(5 * time.Second)
			r.Know(three[:1])
		}
		assert.Equal(t, 1, r.Know(three[:1]), "they are gone")
	})
}

// When a store comes back empty after a long time, who enters itself first does not take the others for gone.
//
// Verifies: R8.5
func TestAStoreThatIsBackEmptyAfterLong(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		owner, other := c.all[0], c.all[1]
		for _, r := range c.all {
			r.store.cut.Store(true)
		}
		s := owner.mustConnect(alice())
		pass(50 * time.Minute)
		s.cut()
		synctest.Wait()
		other.store.cut.Store(false)
		other.Know([]store.Replica{other.self})
		require.NoError(t, other.resume(s, alice()))
		s.leave()
		owner.store.cut.Store(false)
	})
}

func TestAStoreThatWasEmptiedIsFilledAgain(t *testing.T) {
	inReplicas(t, 2, func(t *testing.T, c *replicas) {
		s := c.all[0].mustConnect(alice())
		s.cut()
		fresh := store.NewMemory(store.MemoryConfig{})
		for _, r := range c.all {
			r.store.Store = fresh
		}
		require.NoError(t, c.all[1].resume(s, alice()), "the replicas are asked")
		s.cut()
		c.all[0].Refresh()
		synctest.Wait()
		record, ok, err := fresh.Find(t.Context(), s.Name())
		require.NoError(t, err)
		require.True(t, ok)
		assert.Equal(t, c.all[0].self.ID, record.Owner)
		require.NoError(t, c.all[1].resume(s, alice()))
		s.over()
		require.NoError(t, c.shared.Close())
		c.shared = fresh
	})
}
