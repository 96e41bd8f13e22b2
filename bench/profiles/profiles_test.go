package profiles

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/fault"
)

// Verifies: R9.2
func TestEachProfileCarriesOverABadPath(t *testing.T) {
	bad := Path{Name: "bad", Shape: fault.Shape{Latency: 5 * time.Millisecond, Bandwidth: 8 << 20}, Stalls: 300 * time.Millisecond, Stall: 30 * time.Millisecond,
		Breaks: 500 * time.Millisecond}
	var rows []Row
	require.NoError(t, Run(t.Context(), Config{Paths: []Path{bad}, For: 2500 * time.Millisecond, Seed: 3, Log: io.Discard}, func(r Row) { rows = append(rows, r) }))
	require.Len(t, rows, 4)
	for i, name := range []string{"(none)", "stable", "unstable", "low-bandwidth"} {
		r := rows[i]
		assert.Equal(t, name, r.Profile)
		assert.Positive(t, r.Keys, name)
		assert.Positive(t, r.Bulk, name)
		assert.Positive(t, r.Resumes, "%s: the path broke", name)
		assert.Zero(t, r.Lost, "%s: and no connection was lost", name)
		assert.Zero(t, r.Failed, name)
		assert.Contains(t, r.String(), "| bad | "+name+" |")
	}
}
