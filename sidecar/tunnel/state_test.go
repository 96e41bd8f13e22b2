package tunnel

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Verifies: R1.2
func TestTheStateMachine(t *testing.T) {
	states := []State{Disconnected, Connecting, Connected, Resuming, Draining, Failed}
	allowed := map[string]bool{}
	for _, pair := range [][2]State{
		{Disconnected, Connecting}, {Disconnected, Failed},
		{Connecting, Connected}, {Connecting, Disconnected}, {Connecting, Failed},
		{Connected, Resuming}, {Connected, Draining}, {Connected, Disconnected}, {Connected, Failed},
		{Resuming, Connected}, {Resuming, Disconnected}, {Resuming, Failed},
		{Draining, Resuming}, {Draining, Disconnected}, {Draining, Failed},
		{Failed, Connecting}, {Failed, Disconnected},
	} {
		allowed[fmt.Sprint(pair)] = true
	}
	before := time.Now()
	for _, from := range states {
		require.Contains(t, rank, from, "every state has a rank")
		for _, to := range states {
			m := machine{state: from, since: before}
			err := m.move(to, before.Add(time.Second))
			switch {
			case from == to:
				assert.NoError(t, err)
				assert.Equal(t, before, m.since, "staying is no change")
			case allowed[fmt.Sprint([2]State{from, to})]:
				assert.NoError(t, err, "%s to %s", from, to)
				assert.Equal(t, machine{to, before.Add(time.Second)}, m)
			default:
				assert.ErrorIs(t, err, errs.Internal, "%s to %s", from, to)
				assert.Equal(t, machine{from, before}, m, "a refused move changes nothing")
			}
		}
	}
}

// Verifies: R1.2
func TestHistoryKeepsTheLastHundredEvents(t *testing.T) {
	var h history
	assert.Empty(t, h.list())
	for i := range 250 {
		h.add(Event{Attempt: i})
	}
	events := h.list()
	require.Len(t, events, 100)
	for i, e := range events {
		assert.Equal(t, 150+i, e.Attempt)
	}
	events[0].Attempt = -1
	assert.Equal(t, 150, h.list()[0].Attempt, "a list is the caller's own")
}
