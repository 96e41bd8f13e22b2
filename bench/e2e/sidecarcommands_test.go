package e2e

import (
	"encoding/json"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed/fault"
	sidecarconfig "fairlead/sidecar/config"
)

// asked runs a command that asks the running sidecar.
func (w *world) asked(args ...string) (out, told string, code int) {
	w.t.Helper()
	_, exe := binaries(w.t)
	return command(w.t, nil, exe, append(args, "--admin", w.sidecar.admin)...)
}

// Verifies: R1.5, R8.9, R8.10
func TestCommandsAskARunningSidecar(t *testing.T) {
	w := newWorld(t, withProcesses(), withTarget("echo", newTarget(t, echoServer)), withSidecar(func(c *sidecarconfig.Config) { c.Profile = "unstable" }))
	out, _, code := w.asked("wait", "--timeout", "30s")
	assert.Equal(t, errs.ExitDone, code, out)
	out, _, code = w.asked("status")
	assert.Equal(t, errs.ExitDone, code)
	assert.Contains(t, out, "connected")
	out, _, code = w.asked("status", "--json")
	assert.Equal(t, errs.ExitDone, code)
	var st struct {
		Ready   bool
		Profile string
		Tunnels []struct{ State string }
	}
	require.NoError(t, json.Unmarshal([]byte(out), &st))
	assert.True(t, st.Ready)
	assert.Equal(t, "unstable", st.Profile)

	c := w.dial("echo")
	echoes(t, c, "before")
	_, exe := binaries(t)
	drain := spawn(t, nil, exe, "drain", "--wait", "--admin", w.sidecar.admin)
	w.sidecar.logs.wait(t, "stopping", "reason", "api_drain")
	echoes(t, c, "while it drains")
	echoes(t, w.dial("echo"), "a new one")
	_, why, code := w.asked("wait", "--timeout", "10ms")
	assert.NotEqual(t, errs.ExitDone, code, "a sidecar that stops is not ready: %s", why)
	require.NoError(t, c.CloseWrite())
	_, err := io.Copy(io.Discard, c)
	require.NoError(t, err)
	assert.Equal(t, errs.ExitDone, drain.exit(t), drain.stderr.text())
	assert.Contains(t, drain.stdout.text(), "connections")
	assert.Equal(t, errs.ExitDone, w.sidecar.proc.exit(t))
	_, told, code := w.asked("status")
	assert.Equal(t, errs.ExitFailed, code)
	assert.Contains(t, told, errs.NoSidecar.String())
}

// A Job's last command ends its sidecar, whose exit code is then 0.
func TestQuitEndsTheSidecarOfAJob(t *testing.T) {
	w := newWorld(t, withProcesses(), withTarget("echo", newTarget(t, echoServer)))
	_, told, code := w.asked("quit")
	assert.Equal(t, errs.ExitDone, code, told)
	assert.Equal(t, errs.ExitDone, w.sidecar.proc.exit(t))
	w.sidecar.logs.wait(t, "listeners closed", "reason", "quiet")
}

// Text through a narrow path is compressed in forward mode, and what is passthrough is not.
//
// Verifies: R7.8
func TestForwardedTextIsCompressedOnANarrowPath(t *testing.T) {
	const lines = 20_000
	text := newTarget(t, func(c halfCloser) {
		for range lines {
			if _, err := io.WriteString(c, `{"level":"info","msg":"order shipped","warehouse":"w7"}`+"\n"); err != nil {
				return
			}
		}
		_ = c.CloseWrite()
	})
	w := newWorld(t, withTarget("raw", text), withForward("behind", text))
	w.proxy.Shape(fault.Down, fault.Shape{Bandwidth: 256 << 10}) // so narrow that it pays on a busy machine too
	read := func(listener string) (carried int64) {
		before := w.proxy.Stats().Down
		n, err := io.Copy(io.Discard, w.dial(listener))
		require.NoError(t, err)
		require.EqualValues(t, lines*56, n)
		return w.proxy.Stats().Down - before
	}
	plain := read("raw")
	assert.Zero(t, metric(t, w.gateway.url("/metrics"), `fairlead_gateway_compression_plain_bytes_total{direction="sent"}`))
	packed := read("behind")
	assert.Less(t, packed, plain/2, "of %d bytes", lines*56)
	assert.Positive(t, metric(t, w.gateway.url("/metrics"), `fairlead_gateway_compression_plain_bytes_total{direction="sent"}`))
}
