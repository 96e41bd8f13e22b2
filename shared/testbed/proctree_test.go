package testbed

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseStat(t *testing.T) {
	pid, state, parent, ok := parseStat("12 (a (strange) name) S 7 12 12 0")
	require.True(t, ok)
	assert.Equal(t, []any{12, "S", 7}, []any{pid, state, parent})
	for _, bad := range []string{"", "12", "12 (x", "12 (x)", "x (x) S 1", "12 (x) S y", ")12 (S 1"} {
		_, _, _, ok := parseStat(bad)
		assert.False(t, ok, "%q", bad)
	}
}

func TestKillTreeReachesOtherSessions(t *testing.T) {
	log := t.TempDir() + "/log"
	// The grandchild leaves the process group, as sshd's connections do.
	p, err := startProcess(log, "/bin/sh", "-c", "setsid sh -c 'echo $$; sleep 1000' & wait")
	require.NoError(t, err)
	var grandchild string
	require.NoError(t, p.waitUntil(t.Context(), func() error {
		grandchild = tail(log)
		if grandchild == "" {
			return errExited
		}
		return nil
	}))
	p.kill()
	p.kill()
	assert.True(t, p.exited())
	require.ErrorIs(t, p.signal(0), errExited)
	assert.Eventually(t, func() bool {
		raw, err := os.ReadFile("/proc/" + grandchild + "/stat")
		if err != nil {
			return true
		}
		_, state, _, _ := parseStat(string(raw))
		return state == "Z"
	}, 5*time.Second, 5*time.Millisecond)
	assert.Error(t, exec.Command("/bin/sh", "-c", "kill -0 "+grandchild+" && ! grep -q 'State:.Z' /proc/"+grandchild+"/status").Run())
}

func TestServerThatEndsSaysWhy(t *testing.T) {
	p, err := startProcess(t.TempDir()+"/log", "/bin/sh", "-c", "echo out of luck; exit 3")
	require.NoError(t, err)
	err = p.waitUntil(t.Context(), func() error { return errExited })
	require.ErrorContains(t, err, "out of luck")
	p.kill()
	_, err = startProcess(t.TempDir()+"/log", "/no/such/program")
	require.Error(t, err)
}

func TestMasksOfSignals(t *testing.T) {
	status := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000010801\n"
	assert.True(t, masked(status, "SigCgt:", syscall.SIGHUP))
	assert.True(t, masked(status, "SigCgt:", syscall.SIGUSR2))
	assert.False(t, masked(status, "SigCgt:", syscall.SIGPIPE))
	assert.False(t, masked(status, "SigBlk:", syscall.SIGHUP))
	assert.False(t, masked("", "SigCgt:", syscall.SIGHUP))
	assert.False(t, catches(os.Getpid(), syscall.SIGKILL))
}
