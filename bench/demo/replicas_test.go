package demo

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestReplicasRefuseWhatMeansNothing(t *testing.T) {
	for _, args := range []string{"--kill", "--replicas 1", "--replicas 10", "--replicas -1", "--replicas 3 --port 1", "--replicas 3 --verbose", "--replicas 3 --admin-port 0"} {
		cmd := Command()
		cmd.SetArgs(strings.Fields(args))
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		require.ErrorIs(t, cmd.ExecuteContext(t.Context()), errs.ConfigInvalid, args)
	}
}

// Several gateways, of which one is killed, carry transfers whose hashes are compared; then everything ends.
func TestReplicasAreCheckedAndEndWithASignal(t *testing.T) {
	adopt(t)
	exe := build(t)
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), exe, "demo", "--replicas", "2", "--kill", "--check")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "FAIRLEAD_GATEWAY__TOKEN=another-deployment")
	told, err := cmd.CombinedOutput()
	require.NoError(t, err, string(told))
	for _, part := range []string{"2 gateways that work as one", "gateway-1  wss://127.", "redis ", "sidecar are cut", "is killed; it owned", "is back, after", "every hash equal"} {
		assert.Contains(t, string(told), part)
	}
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	assert.Empty(t, left, "the temporary directory is gone")
	assertAlone(t)

	r := launch(t, exe, "--replicas", "2")
	assert.Contains(t, r.text, "page http://127.")
	r.end(t, syscall.SIGINT)
}
