package session_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// life is a tunnel as its sidecar knows it, with a stream that counts.
type life struct {
	*sidecar
	stream *link.Stream
	owner  *replica
	life   int // of the owner when it made the tunnel
	sent   int
	lane   bool
	told   errs.Code // that it is gone, and why
}

// cluster is the model: what must be true of replicas, tunnels and their network, whatever happens to them.
type cluster struct {
	*replicas
	t     *finding
	lives []*life
	epoch map[string]uint64 // the highest that the store has shown
}

// TestLeaseModel drives replicas at random. At every moment, of each tunnel:
//   - at most one replica has it, the one that has made it;
//   - a resume that reaches an owner that lives and has not lost its lease succeeds, and every byte is there, once;
//   - a resume that is refused for good (gone, unreachable, unknown) stays refused at every replica whose store is reachable,
//     and its owner lets go of it once it reaches the store;
//   - the epoch in the store never goes back, and what is lost stays lost.
//
// Verifies: R1.7, R8.5
func TestLeaseModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.IntRange(0, 1<<20), 5, 40).Draw(rt, "steps")
		found := &finding{}
		synctest.Test(t, func(t *testing.T) {
			c := &cluster{replicas: newReplicas(t, 3), t: found, epoch: map[string]uint64{}}
			defer c.finish()
			defer found.stop()
			for _, step := range steps {
				c.step(step)
				c.check()
			}
			c.settle()
		})
		if found.text != "" {
			rt.Fatal(found.text)
		}
	})
}

// finding is what the model has to say against the code. rapid's own way to stop does not leave a bubble of synctest.
type finding struct{ text string }

func (f *finding) Errorf(format string, args ...any) { f.text += fmt.Sprintf(format, args...) }
func (f *finding) FailNow()                          { panic(f) }

func (f *finding) stop() {
	if p := recover(); p != nil && p != any(f) {
		panic(p)
	}
}

func (c *cluster) step(n int) {
	n = int(uint32(n)*2654435761>>4) % 1_000_000 // rapid prefers small numbers, of which one part would say nothing
	op, n := n%10, n/10
	r := c.all[n%3]
	switch op {
	case 0, 1:
		c.make(r)
	case 2:
		c.write(n)
	case 3, 4, 5:
		c.resume(n)
	case 6:
		a, b := n%3, (n/3)%3
		c.apartFrom(a, b, n/9%2 == 0)
	case 7:
		r.store.cut.Store(n/3%2 == 0)
	case 8:
		c.pass(time.Duration(n%90) * time.Second)
	case 9:
		if n%4 == 0 {
			c.crash(r, n/4%2 == 0)
		} else {
			c.know()
		}
	}
	synctest.Wait()
}

// pass lets time pass; tunnels that have no lane for too long end at their owners.
func (c *cluster) pass(d time.Duration) {
	pass(d)
	synctest.Wait()
}

func (c *cluster) make(r *replica) {
	if len(c.lives) > 8 {
		return
	}
	s, err := r.connect(alice())
	require.NoError(c.t, err)
	synctest.Wait()
	st, err := s.Open(link.OpenRequest{Route: "git", Peer: "app:1"})
	require.NoError(c.t, err)
	require.NoError(c.t, st.WaitOpened(context.Background()))
	c.lives = append(c.lives, &life{sidecar: s, stream: st, owner: r, life: r.life, lane: true})
}

// write sends one number on a stream, and reads the echo of all that were sent if there is a lane.
func (c *cluster) write(n int) {
	l := c.pick(n)
	if l == nil || l.sent > 1000 {
		return
	}
	_, err := fmt.Fprintf(l.stream, "%04d", l.sent)
	if err != nil {
		return // its end shows in check
	}
	l.sent++
}

func (c *cluster) pick(n int) *life {
	alive := slices.DeleteFunc(slices.Clone(c.lives), func(l *life) bool { return l.told != 0 })
	if len(alive) == 0 {
		return nil
	}
	return alive[n%len(alive)]
}

// lives says whether the owner still is the process that made the tunnel, and has it.
func (l *life) has() bool {
	return l.owner.life == l.life && slices.ContainsFunc(l.owner.ids(), func(id string) bool { return id == l.Name() })
}

func (r *replica) ids() (ids []string) {
	for _, t := range r.List() {
		ids = append(ids, t.ID)
	}
	return ids
}

func (c *cluster) reaches(r *replica, l *life) bool {
	return r == l.owner || !c.apart[[2]int{r.n, l.owner.n}] && !c.apart[[2]int{l.owner.n, r.n}]
}

// resume cuts a tunnel's lane and comes back at any replica.
func (c *cluster) resume(n int) {
	l := c.pick(n)
	if l == nil {
		return
	}
	if l.lane {
		l.cut()
		l.lane = false
		synctest.Wait()
	}
	r := c.all[n/7%3]
	had, reached, stored := l.has(), c.reaches(r, l), !r.store.cut.Load()
	record, entered, err := c.shared.Find(context.Background(), l.Name())
	require.NoError(c.t, err)
	lost := record.Lost != nil // before it is asked: whoever gives up what lives is wrong
	err = r.world.resume(l.sidecar, alice())
	synctest.Wait()
	switch code := errs.CodeOf(err); code {
	case 0:
		require.True(c.t, had && reached, "resumed at %s, where nobody had it", r.self.Name)
		l.lane = true
	case errs.OwnerUnknown:
		require.True(c.t, !stored || !reached || !entered, "%v, though everybody could be asked", err)
	default:
		l.told = code
		require.Contains(c.t, []errs.Code{errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost, errs.TunnelUnknown}, code, "%v", err)
		require.False(c.t, had && reached && (stored && entered || r == l.owner) && !lost, "the owner had it: %v", err)
		c.stays(l)
	}
}

// lost says whether the store has a tunnel as lost.
func (c *cluster) lost(l *life) bool {
	record, ok, err := c.shared.Find(context.Background(), l.Name())
	require.NoError(c.t, err)
	return ok && record.Lost != nil
}

// stays asks everybody who reaches the store again: what is gone is gone. An owner that has not entered a tunnel yet, because the
// store was out of its reach, is nobody that others could have known.
func (c *cluster) stays(l *life) {
	for _, r := range c.all {
		if r.store.cut.Load() || !c.lost(l) {
			continue
		}
		err := r.world.resume(l.sidecar, alice())
		require.Error(c.t, err, "%s takes a tunnel that was said to be gone (%v)", r.self.Name, l.told)
	}
	l.Close(nil)
}

// crash replaces a process; whether the others hear of the new one at once is not certain.
func (c *cluster) crash(r *replica, heard bool) {
	was := r.self.ID
	for _, l := range c.lives {
		if l.owner == r && l.life == r.life && l.lane {
			l.cut()
			l.lane = false
		}
	}
	r.crash()
	if heard {
		c.know()
	} else { // it has entered itself, and what was left of the one before has expired
		require.NoError(c.t, c.shared.Withdraw(context.Background(), was))
		require.NoError(c.t, c.shared.Announce(context.Background(), r.self, 15*time.Second))
	}
}

// check looks at what must be true now.
func (c *cluster) check() {
	holders := map[string]*replica{}
	for _, r := range c.all {
		for _, id := range r.ids() {
			require.Nil(c.t, holders[id], "two replicas have tunnel %s", id)
			holders[id] = r
		}
	}
	for _, l := range c.lives {
		if h := holders[l.Name()]; h != nil {
			require.Same(c.t, l.owner, h, "a tunnel has changed hands")
		}
		record, ok, err := c.shared.Find(context.Background(), l.Name())
		require.NoError(c.t, err)
		if !ok {
			continue
		}
		require.GreaterOrEqual(c.t, record.Epoch, c.epoch[l.Name()], "the epoch went back")
		c.epoch[l.Name()] = record.Epoch
	}
}

// settle mends everything: those whose tunnels are gone hear of it, the others get every byte.
func (c *cluster) settle() {
	clear(c.apart)
	for _, r := range c.all {
		r.store.cut.Store(false)
	}
	c.know()
	for _, r := range c.all {
		r.Refresh()
	}
	synctest.Wait()
	for i, l := range c.lives {
		if l.told == 0 && !l.lane {
			had := l.has()
			err := c.all[i%3].world.resume(l.sidecar, alice())
			require.Equal(c.t, had, err == nil, "had it: %v; %v", had, err)
			l.lane = err == nil
		}
		if l.told != 0 && c.lost(l) {
			require.False(c.t, l.has(), "the owner has not let go of what it was said to have lost")
		}
		if l.lane && l.Err() == nil {
			got := make([]byte, 4*l.sent)
			_ = l.stream.CloseWrite()
			n := 0
			for n < len(got) {
				k, err := l.stream.Read(got[n:])
				n += k
				if err != nil {
					break
				}
			}
			for k := range l.sent {
				require.Equal(c.t, fmt.Sprintf("%04d", k), string(got[4*k:4*k+4]))
			}
		}
	}
}

func (c *cluster) finish() {
	for _, l := range c.lives {
		l.Close(nil)
		l.Wait()
	}
	synctest.Wait()
	c.close()
	for _, r := range c.all {
		assert.Equal(c.t, [2]int{}, r.limits.held())
	}

}
