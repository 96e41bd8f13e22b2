package backend

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

// However tenants come, leave and finish: never more dials than allowed, everyone has an answer, nothing is left over, and
// between two turns of a tenant that waits no other has two.
//
// Verifies: R5.5
func TestTurnsHoldTheirPromises(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit, spare := rapid.IntRange(1, 4).Draw(rt, "limit"), rapid.IntRange(0, 2).Draw(rt, "spare")
		base, end := context.WithCancel(context.Background())
		defer end()
		b := &Backend{Name: "b"}
		q := &turns{b: b, kind: turnKind{limit: "concurrent"}, limit: limit, spare: spare, most: 30, each: 12, base: base,
			counts: newTurnCounts(metrics.NewSet(), "b", "dial"), lines: map[string]*line{}, active: map[string]int{}}
		var waiting []*turn
		running, by := 0, map[string]int{}         // dials under way, and of each tenant
		sinceServed := map[string]map[string]int{} // for each tenant that waits: turns of the others since its last
		settle := func() {
			for i := 0; i < len(waiting); {
				select {
				case ok := <-waiting[i].ready:
					require.True(rt, ok)
					running++
					by[waiting[i].line.tenant]++
					waiting = append(waiting[:i], waiting[i+1:]...)
				default:
					i++
				}
			}
		}
		note := func(served string) {
			delete(sinceServed, served)
			for tenant := range q.lines {
				if tenant == served {
					continue
				}
				if sinceServed[tenant] == nil {
					sinceServed[tenant] = map[string]int{}
				}
				sinceServed[tenant][served]++
				require.LessOrEqual(rt, sinceServed[tenant][served], 1, "%s had two turns while %s waited", served, tenant)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"come": func(rt *rapid.T) {
				tenant := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "tenant")
				q.mu.Lock()
				if q.waiting == 0 && q.roomLocked(tenant) {
					q.beginLocked(tenant)
					running++
					by[tenant]++
				} else if t, err := q.joinLocked(tenant); err != nil {
					require.ErrorIs(rt, err, errs.DialQueueFull)
					mine := 0
					for _, w := range waiting {
						if w.line.tenant == tenant {
							mine++
						}
					}
					require.True(rt, mine == 12 || len(waiting) == 30)
				} else {
					waiting = append(waiting, t)
					q.serveLocked()
				}
				q.mu.Unlock()
				settle()
			},
			"finish": func(rt *rapid.T) {
				if running == 0 {
					rt.Skip()
				}
				before := len(waiting)
				whose := slices.Sorted(maps.Keys(by))
				tenant := rapid.SampledFrom(whose).Draw(rt, "whose")
				if by[tenant]--; by[tenant] == 0 {
					delete(by, tenant)
				}
				had := maps.Clone(by)
				q.leave(tenant)
				running--
				settle()
				for served := range by {
					if spare == 0 && by[served] > had[served] {
						note(served) // with spare places, who has none under way may come first
					}
				}
				require.LessOrEqual(rt, len(waiting), before)
			},
			"lose patience": func(rt *rapid.T) {
				if len(waiting) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(waiting)-1).Draw(rt, "who")
				tenant := waiting[i].line.tenant
				q.quit(waiting[i])
				waiting = append(waiting[:i], waiting[i+1:]...)
				if !slices.ContainsFunc(waiting, func(t *turn) bool { return t.line.tenant == tenant }) {
					delete(sinceServed, tenant)
				}
			},
			"": func(rt *rapid.T) {
				st := q.stats()
				require.LessOrEqual(rt, running, limit+spare)
				require.Equal(rt, running, st.Running)
				require.Equal(rt, by, q.active)
				require.Equal(rt, len(waiting), st.Waiting)
				require.Equal(rt, len(q.lines), st.Tenants)
				require.False(rt, len(waiting) > 0 && running < limit, "somebody waits although there is room")
				for _, w := range waiting {
					require.False(rt, by[w.line.tenant] == 0 && running < limit+spare, "%s has none under way, and a spare place is free", w.line.tenant)
				}
				if running > limit {
					require.GreaterOrEqual(rt, len(by), 2, "spare places are for those who have none")
				}
			},
		})
	})
}
