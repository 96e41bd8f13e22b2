package limit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

const modelReplicas = 3

// event is something that happens in the model; what of it means something depends on what it is.
type event struct {
	what        int
	replica, n  int
	tenant      string
	kind        kind
	lost, known [modelReplicas]bool
	pass        time.Duration
}

func drawEvent(t *rapid.T) (e event) {
	e.what = rapid.IntRange(0, 9).Draw(t, "what")
	e.replica, e.n = rapid.IntRange(0, modelReplicas-1).Draw(t, "replica"), rapid.IntRange(1, 8).Draw(t, "n")
	e.tenant = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant")
	e.kind = rapid.SampledFrom([]kind{streams, tunnels}).Draw(t, "kind")
	for i := range modelReplicas {
		e.lost[i], e.known[i] = rapid.Bool().Draw(t, "lost"), rapid.Bool().Draw(t, "known")
	}
	e.pass = time.Duration(rapid.IntRange(1, 30_000).Draw(t, "ms")) * time.Millisecond
	return e
}

// model is three replicas to which everything happens, and what they have granted.
type model struct {
	c        *counter
	all      []*replica
	tier     Tier
	slots    []*modelSlot
	opens    []modelOpen
	restarts int
	trouble  bool      // somebody has lost what is shared, or it is not long ago
	since    time.Time // of the last trouble
	wrong    string    // what was found first; rapid wants to hear of it outside of the bubble
}

type modelSlot struct {
	by      *replica
	kind    kind
	tenant  string
	release func()
}

type modelOpen struct {
	by     *replica
	tenant string
	at     time.Time
	share  bool // granted by the share
}

// Errorf and FailNow make m a require.TestingT.
func (m *model) Errorf(format string, args ...any) {
	if m.wrong == "" {
		m.wrong = fmt.Sprintf(format, args...)
	}
}

func (m *model) FailNow() { panic(m.wrong) }

func (m *model) start(i int) {
	m.restarts++
	m.all[i] = newReplica(m, m.c, Config{Tiers: tiers(m.tier)}, fmt.Sprint("gw-", i, "-", m.restarts))
	m.all[i].SetShare(modelReplicas)
}

func (m *model) happen(e event) {
	switch e.what {
	case 0, 1, 2:
		m.take(e)
	case 3, 4:
		m.release(e)
	case 5:
		m.crash(e)
	case 6:
		m.lose(e)
	case 7:
		m.find()
	default:
		m.pass(e)
	}
	synctest.Wait()
	m.check()
}

// check compares what is counted with what is held.
func (m *model) check() {
	for _, r := range m.all {
		for _, tenant := range []string{"a", "b"} {
			inTunnels, inStreams := r.Usage(tenant)
			if inTunnels != m.held(tenant, tunnels, r) || inStreams != m.held(tenant, streams, r) {
				m.Errorf("%d tunnels and %d streams are counted", inTunnels, inStreams)
			}
		}
	}
}

// held counts what replicas hold, of one when it is given.
func (m *model) held(tenant string, k kind, by *replica) (n int) {
	for _, s := range m.slots {
		if s.tenant == tenant && s.kind == k && (by == nil || s.by == by) {
			n++
		}
	}
	return n
}

// limits are the whole and the share of what there may be of k.
func (m *model) limits(k kind) (whole, share int) {
	whole = m.tier.slots(k)
	return whole, max(whole/modelReplicas, 1)
}

// take checks what it is granted, or why not.
func (m *model) take(e event) {
	r, tenant, k := m.all[e.replica], e.tenant, e.kind
	take := r.Open
	if k == tunnels {
		take = r.Tunnel
	}
	for range e.n {
		lost := r.cut.Load() || r.shared.mode.load() == alone
		whole, share := m.limits(k)
		mine, known := m.held(tenant, k, r), m.c.held(tenant)[k]
		recently, idle := r.rest(tenant, k)
		release, err := take(tenant, "")
		synctest.Wait()
		if err != nil {
			if k == tunnels && !m.trouble && m.held(tenant, k, nil) < whole && known < whole && time.Since(m.since) > time.Minute && !recently {
				m.Errorf("refused with %d held: %v", m.held(tenant, k, nil), err)
			}
			continue
		}
		m.slots = append(m.slots, &modelSlot{r, k, tenant, release})
		all := m.held(tenant, k, nil)
		switch {
		case lost && mine >= share && (r.shared.mode.load() == alone || idle == 0): // it may take over what is still held there
			m.Errorf("the share of %d %v is held, and one more granted", share, k)
		case !lost && !m.trouble && all > whole:
			m.Errorf("%d %v of %d", all, k, whole)
		case !lost && m.c.held(tenant)[k] > max(whole, known):
			m.Errorf("%d %v counted, of %d", m.c.held(tenant)[k], k, whole)
		}
		if k == streams {
			m.opens = append(m.opens, modelOpen{r, tenant, time.Now(), lost})
		}
	}
}

// rest says whether the replica was told a short while ago that all slots are held, and how many may be taken over.
func (r *replica) rest(name string, k kind) (full bool, idle int) {
	s := r.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byName[name]
	if !ok {
		return false, 0
	}
	j := e.Value.(*tenant).joint
	return time.Now().Before(j.full[k].until), len(j.idle[k])
}

func (m *model) release(e event) {
	if len(m.slots) == 0 {
		return
	}
	i := int(e.pass) % len(m.slots)
	s := m.slots[i]
	m.slots = append(m.slots[:i], m.slots[i+1:]...)
	s.release()
	s.release()
}

// crash ends a replica without a word, and starts another one in its place.
func (m *model) crash(e event) {
	i := e.replica
	m.all[i].cut.Store(true)
	m.all[i].stop()
	kept := m.slots[:0]
	for _, s := range m.slots {
		if s.by != m.all[i] {
			kept = append(kept, s)
		}
	}
	m.slots = kept
	m.start(i)
	m.since = time.Now()
}

// lose takes the store from some replicas, which may know.
func (m *model) lose(e event) {
	for i, r := range m.all {
		if e.lost[i] {
			r.cut.Store(true)
			m.trouble = true
			if e.known[i] {
				r.SetDegraded(true)
			}
		}
	}
	m.since = time.Now()
}

// find gives it back.
func (m *model) find() {
	for _, r := range m.all {
		r.cut.Store(false)
		r.SetDegraded(false)
	}
	m.since = time.Now()
}

func (m *model) pass(e event) {
	<-time.After(e.pass)
	synctest.Wait()
	up := true
	for _, r := range m.all {
		up = up && !r.cut.Load() && r.shared.mode.load() == together
	}
	// Who had more than there is, when the store came back, keeps it.
	over := false
	for _, tenant := range []string{"a", "b"} {
		for k := range kinds {
			whole, _ := m.limits(k)
			over = over || m.held(tenant, k, nil) > whole
		}
	}
	if up && !over && time.Since(m.since) > time.Minute {
		m.trouble = false
	}
}

// rates checks every window: by the share for what may be the share's, and by the whole if nothing in it may be.
func (m *model) rates() {
	share := Tier{OpensPerMinute: max(m.tier.OpensPerMinute/modelReplicas, 1), Burst: max(m.tier.Burst/modelReplicas, 1)}
	for i, last := range m.opens {
		all, own, clean := 0, 0, true
		for j := i; j >= 0; j-- {
			o := m.opens[j]
			if o.tenant != last.tenant {
				continue
			}
			d := last.at.Sub(o.at)
			all++
			clean = clean && !o.share
			if o.by == last.by && o.share {
				own++
			}
			if clean && float64(all) > atMost(m.tier, d) {
				m.Errorf("%d opens within %v, of %+v", all, d, m.tier)
			}
			if last.share && o.by == last.by && o.share && float64(own) > atMost(share, d) {
				m.Errorf("%d opens of one replica's share within %v, of %+v", own, d, share)
			}
		}
	}
}

// Whatever is taken and given back, whichever replica crashes, whoever loses what is shared and finds it again: together
// replicas grant no more than the limit, alone no more than their shares; what a crashed one held comes back with its lease;
// nobody is refused for nothing; and nothing is left at the end.
//
// Verifies: R4.8, R4.3
func TestReplicasKeepTheLimitsWhateverHappens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tier := Tier{
			OpensPerMinute: rapid.IntRange(1, 200).Draw(rt, "rate"), Burst: rapid.IntRange(1, 20).Draw(rt, "burst"),
			Streams: rapid.IntRange(1, 10).Draw(rt, "streams"), Tunnels: rapid.IntRange(1, 5).Draw(rt, "tunnels"),
		}
		events := rapid.SliceOfN(rapid.Custom(drawEvent), 20, 120).Draw(rt, "events")
		m := &model{tier: tier, all: make([]*replica, modelReplicas)}
		synctest.Test(t, func(*testing.T) {
			m.c, m.since = newCounter(), time.Now().Add(-time.Hour)
			for i := range m.all {
				m.start(i)
			}
			for _, e := range events {
				m.happen(e)
			}
			m.rates()
			m.end()
		})
		if m.wrong != "" {
			rt.Fatal(m.wrong)
		}
	})
}

// end gives everything back.
func (m *model) end() {
	m.find()
	for _, s := range m.slots {
		s.release()
	}
	<-time.After(time.Minute)
	synctest.Wait()
	if n := m.c.held(""); n != [kinds]int{} {
		m.Errorf("%v are left", n)
	}
	for _, r := range m.all {
		waiting, held := r.shared.returns.waiting.Load(), r.shared.counts.slots.Load()
		if waiting != 0 || held != 0 {
			m.Errorf("%d wait to be returned, and %d are held", waiting, held)
		}
		r.stop()
	}
}
