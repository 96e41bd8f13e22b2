package tunnel

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

var errGone = errs.New(errs.DialFailed, "nobody there")

type known struct {
	*endpoints
	now time.Time
}

func knows(weights ...int) *known {
	k := &known{endpoints: newEndpoints(), now: time.Now()}
	all := make([]Endpoint, len(weights))
	for i, w := range weights {
		all[i] = Endpoint{URL: string(rune('a' + i)), Weight: w}
	}
	k.set(all, time.Minute, k.now)
	return k
}

func (k *known) order() (urls string) {
	for _, e := range k.candidates(k.now) {
		urls += e.url
	}
	return urls
}

func (k *known) tell(i int, err error) { k.report(k.list[i], err, k.now) }

func (k *known) working(urls ...int) map[*endpoint]bool {
	m := map[*endpoint]bool{}
	for _, i := range urls {
		m[k.list[i]] = true
	}
	return m
}

func TestInOrderTheActiveEndpointStaysUntilItFails(t *testing.T) {
	k := knows(0, 0, 0)
	assert.Equal(t, "abc", k.order())
	k.tell(0, errGone)
	assert.Equal(t, "bca", k.order(), "one that fails is the last choice")
	_, to := k.elect(k.working())
	assert.Nil(t, to, "there is none that works")
	from, to := k.elect(k.working(2))
	assert.Equal(t, "a", from.url)
	assert.Equal(t, "c", to.url)
	assert.Equal(t, "cba", k.order())
	k.tell(0, nil)
	assert.Equal(t, "cab", k.order(), "what has just come back is not trusted yet, but better than others if this one fails")
	_, to = k.elect(k.working(0, 1, 2))
	assert.Nil(t, to)

	e, _ := k.recovered(k.now.Add(59 * time.Second))
	assert.Nil(t, e)
	k.now = k.now.Add(30 * time.Second)
	k.tell(0, errGone)
	k.tell(0, nil)
	e, _ = k.recovered(k.now.Add(59 * time.Second))
	assert.Nil(t, e, "a relapse begins the time anew")
	e, _ = k.recovered(k.now.Add(time.Minute))
	require.NotNil(t, e)
	assert.Equal(t, "a", e.url)
	k.activate(e)
	assert.Equal(t, "abc", k.order())
	e, _ = k.recovered(k.now.Add(time.Hour))
	assert.Nil(t, e, "that was the most preferred")
}

func TestASuspectIsAvoided(t *testing.T) {
	k := knows(0, 0)
	k.suspects(k.working(0))
	assert.Equal(t, "ba", k.order())
	_, to := k.elect(k.working(1))
	assert.Equal(t, "b", to.url)
	k.suspects(nil)
	assert.Equal(t, "ba", k.order())
}

func TestWhatFailuresSayAboutAnEndpoint(t *testing.T) {
	for code, want := range map[errs.Code]Health{
		errs.DialFailed: Failing, errs.TLSFailed: Failing, errs.UpgradeFailed: Failing, errs.Draining: Failing, errs.TokenInvalid: Failing,
		errs.HandshakeLate: Failing, errs.ProxyAuth: Failing, errs.LaneLost: Failing,
		errs.TunnelLimit: Unknown, errs.TunnelUnknown: Unknown, errs.Canceled: Unknown, errs.TokenUnreadable: Unknown, errs.HandshakeLimit: Unknown,
	} {
		assert.Equal(t, want, verdict(errs.New(code, "x")), "%v", code)
	}
	assert.Equal(t, Healthy, verdict(nil))
	assert.Equal(t, Unknown, verdict(errors.New("a bug")))
}

func TestWeightsShareNewTunnels(t *testing.T) {
	k := knows(3, 1, 0)
	draws := func() map[byte]int {
		n := map[byte]int{}
		for range 4000 {
			n[k.order()[0]]++
		}
		return n
	}
	n := draws()
	assert.InDelta(t, 3000, n['a'], 250)
	assert.InDelta(t, 1000, n['b'], 250)
	assert.Zero(t, n['c'], "one without weight is for when no other works")
	k.tell(0, errGone)
	assert.Equal(t, map[byte]int{'b': 4000}, draws())
	k.tell(1, errGone)
	assert.Equal(t, map[byte]int{'c': 4000}, draws())
	k.tell(0, nil)
	k.tell(1, nil)
	n = draws()
	assert.Zero(t, n['c'], "better one that has just come back")
	e, _ := k.recovered(k.now.Add(59 * time.Second))
	assert.Nil(t, e)
	k.now = k.now.Add(time.Minute)
	e, out := k.recovered(k.now)
	assert.Equal(t, "a", e.url)
	assert.False(t, out.IsZero())
	e, _ = k.recovered(k.now)
	assert.Equal(t, "b", e.url)
	e, _ = k.recovered(k.now)
	assert.Nil(t, e, "each once")
	assert.InDelta(t, 0.75, k.share(k.list[0], k.now), 1e-9)
}

func TestAConfigurationThatChangesKeepsWhatIsKnown(t *testing.T) {
	k := knows(0, 0, 0)
	k.tell(0, errGone)
	k.elect(k.working(1))
	b := k.list[1]
	k.set([]Endpoint{{URL: "d"}, {URL: "b"}}, time.Minute, k.now)
	assert.Equal(t, "bd", k.order())
	assert.Same(t, b, k.list[1])
	k.set([]Endpoint{{URL: "d"}, {URL: "a"}}, time.Minute, k.now)
	assert.True(t, b.removed)
	stays, _ := k.home(b)
	assert.False(t, stays)
	assert.Equal(t, "da", k.order())
}

func TestOnlyEndpointsWithoutTunnelsAreProbed(t *testing.T) {
	k := knows(0, 0, 0)
	due := k.due(k.now, 10*time.Second, k.working(0))
	require.Len(t, due, 2)
	assert.Empty(t, k.due(k.now.Add(time.Hour), 10*time.Second, nil)[1:], "one that is being probed is not due")
	for _, e := range due {
		k.probed(e)
		assert.GreaterOrEqual(t, e.nextProbe.Sub(k.now), 8*time.Second)
		assert.LessOrEqual(t, e.nextProbe.Sub(k.now), 12*time.Second)
	}
	assert.Empty(t, knows(0).due(k.now, time.Second, nil), "without a choice there is nothing to find out")
}
