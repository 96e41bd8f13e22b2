package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/bench/cluster"
)

// clusterScenario runs one of the scenarios of `bench cluster` in its short form. What depends on how fast the machine is it
// reports and does not judge.
func clusterScenario(t *testing.T, name string) *cluster.Result {
	t.Helper()
	s, ok := cluster.Find(name)
	require.True(t, ok, name)
	dir := t.TempDir()
	r, err := s.Run(t.Context(), cluster.Options{Dir: dir, Bin: clusterBin(t), Short: true, Seed: 5, Note: t.Logf})
	for _, f := range r.Figures {
		t.Logf("%s: %.2f %s %s", f.Name, f.Value, f.Unit, f.Want)
	}
	assert.NoError(t, err)
	assert.Empty(t, r.Failures)
	if t.Failed() {
		clusterLogs(t, dir)
	}
	return r
}

// clusterBin is the directory of both programs.
func clusterBin(t *testing.T) string {
	t.Helper()
	gateway, sidecar := binaries(t)
	require.Equal(t, filepath.Dir(gateway), filepath.Dir(sidecar))
	return filepath.Dir(gateway)
}

// clusterLogs shows how the programs' logs end.
func clusterLogs(t *testing.T, dir string) {
	t.Helper()
	const most = 3 << 10
	for _, pattern := range []string{"*.log", "*/*.log"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			t.Logf("the end of %s:\n%s", file, text[max(0, len(text)-most):])
		}
	}
}

// A rolling restart of all replicas, under connections with transfers and new ones all the time, loses none.
//
// Verifies: R8.3, R8.4, R8.6, R8.8, R8.10
func TestClusterRollingRestart(t *testing.T) { clusterScenario(t, "roll") }

// Connections that are cut come back through whichever replica the balancer picks, and no byte of theirs is lost.
//
// Verifies: R1.7, R1.8, R10.6, N6
func TestClusterCuts(t *testing.T) { clusterScenario(t, "cuts") }

// All tunnels of a replica that is killed come back to the others, which serve their own meanwhile.
//
// Verifies: R10.4, R10.5
func TestClusterStorm(t *testing.T) { clusterScenario(t, "storm") }

// A tenant that attacks all replicas at once gets what it may have and no more, with Redis and without, and nobody else
// notices.
//
// Verifies: R4.8, R10.7
func TestClusterLimits(t *testing.T) { clusterScenario(t, "limits") }

// Redis is absent, frozen, killed, empty, full, read-only and fails over; connections are made and kept all the while.
//
// Verifies: R10.2, R10.4, R10.5, R10.6
func TestClusterRedisTrouble(t *testing.T) {
	t.Parallel()
	clusterScenario(t, "redis")
}

// Replicas that are parted from each other or from Redis tell sidecars the truth, and never own a tunnel both.
//
// Verifies: R8.5
func TestClusterPartitions(t *testing.T) {
	t.Parallel()
	clusterScenario(t, "partition")
}

// A replica that was killed and is back under its name says at once what has become of its tunnels.
//
// Verifies: R8.5
func TestClusterRestart(t *testing.T) {
	t.Parallel()
	clusterScenario(t, "restart")
}
