package audit

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

type kept []Event

func (k *kept) Record(e Event) error {
	*k = append(*k, e)
	return nil
}

// Verifies: R4.9
func TestAFloodOfRefusalsIsCountedInsteadOfFloodingTheLog(t *testing.T) {
	var log kept
	now := time.Unix(1_800_000_000, 0)
	p := NewPaced(&log, func() time.Time { return now })
	refusal := Event{Action: Open, Result: Refused, Tenant: "hostile", Actor: "h", Route: "vault", Code: errs.RouteForbidden, Detail: "not yours"}
	for range 10_000 {
		require.NoError(t, p.Record(refusal))
	}
	require.Len(t, log, refusalsPerMinute)
	allowed := Event{Action: Open, Result: Allowed, Tenant: "hostile"}
	other := Event{Action: Open, Result: Failed, Tenant: "victim"}
	stranger := Event{Action: Authenticate, Result: Refused, Client: "192.0.2.1"}
	for _, e := range []Event{allowed, other, stranger} {
		require.NoError(t, p.Record(e))
		require.Equal(t, e, log[len(log)-1], "what was allowed, and what others do, is recorded")
	}
	p.Tell(false)
	require.Len(t, log, refusalsPerMinute+3, "not yet")
	now = now.Add(time.Minute)
	p.Tell(false)
	require.Len(t, log, refusalsPerMinute+4)
	sum := log[len(log)-1]
	require.Equal(t, Refusals, sum.Action)
	require.Equal(t, []any{"hostile", Refused, errs.RouteForbidden, time.Minute}, []any{sum.Tenant, sum.Result, sum.Code, sum.Duration})
	require.Equal(t, "9400 refusals and failures were not recorded one by one; the last: open vault: not yours", sum.Detail)
	p.Tell(true)
	require.Len(t, log, refusalsPerMinute+4, "each is told once")
	require.NoError(t, p.Record(refusal))
	require.Equal(t, refusal, log[len(log)-1], "after a while they are recorded again")

	for range refusalsPerMinute {
		require.NoError(t, p.Record(refusal))
	}
	for i := range pacedMost {
		require.NoError(t, p.Record(Event{Action: Open, Result: Refused, Tenant: fmt.Sprint("t", i)}))
	}
	before := len(log)
	p.Tell(true)
	require.Equal(t, "hostile", log[before].Tenant, "who is forgotten is told too")
}
