package history_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/admin/history"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// figures is a Source whose totals a test moves.
type figures struct {
	mu  sync.Mutex
	now history.Sample
}

func (f *figures) Sample() history.Sample {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *figures) change(to func(*history.Sample)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	to(&f.now)
}

// run starts a History in a bubble; the function returned ends it and waits for it.
func run(h *history.History) func() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	synctest.Wait()
	return func() { cancel(); running.Wait() }
}

func TestRatesAreOfTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &figures{now: history.Sample{Tunnels: 2, Opens: 1000, Sent: 5000}}
		h := history.New(history.Config{Instance: "gw-1", Version: "v1", Source: f})
		defer run(h)()
		assert.Empty(t, h.Live(time.Time{}).History, "a rate needs two samples")
		f.change(func(s *history.Sample) {
			*s = history.Sample{Tunnels: 3, Detached: 1, Streams: 7, Opens: 1010, Refused: 4, Failed: 2, Sent: 9000, Received: 600, Resumes: 3, Lost: 1, Pressure: .5}
		})
		<-time.After(2 * time.Second) // the bubble's clock
		synctest.Wait()
		live := h.Live(time.Time{})
		require.Len(t, live.History, 1)
		assert.Equal(t, history.Point{T: time.Now(), Tunnels: 3, Detached: 1, Streams: 7, Opens: 5, Refused: 2, Failed: 1, Sent: 2000, Received: 300,
			Resumes: 3, Lost: 1, Pressure: .5}, live.History[0])
		assert.Equal(t, uint64(1010), live.Totals.Opens)
		assert.Equal(t, "serving", live.State)
		assert.EqualValues(t, 2000, live.EveryMS)

		f.change(func(s *history.Sample) { *s = history.Sample{Opens: 5} })
		<-time.After(2 * time.Second)
		synctest.Wait()
		assert.Zero(t, h.Live(live.History[0].T).History[0].Opens, "a total that shrank gives no rate")
	})
}

func TestItForgetsWhatIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history.New(history.Config{Source: &figures{}, Every: time.Second, Keep: 10 * time.Second})
		defer run(h)()
		begin := time.Now()
		<-time.After(25 * time.Second)
		synctest.Wait()
		points := h.Live(time.Time{}).History
		require.Len(t, points, 10)
		for i, p := range points {
			assert.Equal(t, time.Duration(16+i)*time.Second, p.T.Sub(begin), "oldest first, none twice, none left out")
		}
		assert.Len(t, h.Live(points[6].T).History, 3, "only those after the moment asked for")
	})
}

func TestQuantilesOfTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bounds := []float64{.010, .020, .100}
		latency := history.NewLatency(bounds)
		latency.Observe(time.Hour) // before the first sample: counts in no interval
		f := &figures{now: history.Sample{Opened: latency.Counts()}}
		h := history.New(history.Config{Source: f, Bounds: bounds})
		defer run(h)()
		step := func(each ...time.Duration) history.Point {
			for _, d := range each {
				latency.Observe(d)
			}
			f.change(func(s *history.Sample) { s.Opened = latency.Counts() })
			<-time.After(2 * time.Second)
			synctest.Wait()
			all := h.Live(time.Time{}).History
			return all[len(all)-1]
		}
		p := step()
		assert.Nil(t, p.P50, "no opens, no quantile")
		raw, err := json.Marshal(p)
		require.NoError(t, err)
		assert.Contains(t, string(raw), `"p50_ms":null`)

		p = step(5*time.Millisecond, 10*time.Millisecond, 15*time.Millisecond, 50*time.Millisecond)
		assert.InDelta(t, 10, *p.P50, 1e-9, "two of four are up to 10 ms")
		assert.InDelta(t, 84, *p.P95, 1e-9, "four fifths into the bucket from 20 to 100 ms")
		assert.Greater(t, *p.P99, *p.P95)

		p = step(time.Minute)
		assert.InDelta(t, 100, *p.P50, 1e-9, "above the last bound: that bound")
	})
}

func TestBucketsThatDoNotFitAreLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history.New(history.Config{Source: &figures{now: history.Sample{Opened: []uint64{1, 2, 3}}}, Bounds: []float64{1}})
		defer run(h)()
		<-time.After(4 * time.Second)
		synctest.Wait()
		assert.Nil(t, h.Live(time.Time{}).History[0].P50)
	})
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := history.New(history.Config{Source: &figures{}})
		assert.Equal(t, history.Events{Events: []history.Event{}}, h.Events(0))
		for range 2500 {
			h.Event(history.Event{Kind: history.Connect, Tenant: "a/b"})
		}
		all := h.Events(0)
		require.Len(t, all.Events, 1000)
		assert.Equal(t, uint64(2500), all.Last)
		for i, e := range all.Events {
			assert.Equal(t, uint64(1501+i), e.ID)
			assert.Equal(t, time.Now(), e.Time)
		}
		assert.Len(t, h.Events(2497).Events, 3)
		assert.Empty(t, h.Events(2500).Events)
		assert.NotNil(t, h.Events(9999).Events, "an empty list in JSON, not null")
	})
}

func TestStrangersTextsAreClipped(t *testing.T) {
	h := history.New(history.Config{Source: &figures{}})
	long := strings.Repeat("ä", 1<<20)
	h.Event(history.Event{Kind: history.Refused, Tenant: long, Text: long, Tunnel: long, Route: long, Backend: long, Code: long, Pod: long})
	e := h.Events(0).Events[0]
	for text, limit := range map[string]int{e.Tenant: 128, e.Text: 512, e.Pod: 128} {
		assert.LessOrEqual(t, len(text), limit)
		assert.True(t, utf8.ValidString(text))
		assert.True(t, strings.HasSuffix(text, "…"))
	}
}

func TestUsedByManyAtOnce(t *testing.T) {
	f := &figures{}
	h := history.New(history.Config{Source: f, Every: time.Microsecond, Keep: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	var running, writing sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	for range 4 {
		writing.Go(func() {
			for range 100 {
				h.Event(history.Event{Kind: history.Resume})
				h.Live(time.Time{})
				h.Events(0)
			}
		})
	}
	writing.Wait()
	cancel()
	running.Wait()
	assert.Equal(t, uint64(400), h.Events(0).Last)
	assert.LessOrEqual(t, len(h.Live(time.Time{}).History), 1000)
}
