package demo

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // what libraries leave behind: hystrix for good, fasthttp for the process or until a sleep is over
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*metricExchange).Monitor"),
		goleak.IgnoreTopFunction("github.com/afex/hystrix-go/hystrix.(*poolMetrics).Monitor"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

func embedded(_ context.Context, dir string) (testbed.SSHServer, error) {
	return testbed.StartEmbedded(testbed.EmbeddedConfig{Dir: dir})
}

// A machine without sshd has the demo too.
func TestDemoWithTheEmbeddedServer(t *testing.T) {
	var log buffer
	var out bytes.Buffer
	d, err := start(t.Context(), config{dir: t.TempDir(), log: &log, startSSH: embedded})
	require.NoError(t, err, log.String())
	text := d.instructions(true, false, false)
	assert.Contains(t, text, d.server.Addr()+", an SSH server of its own, without terminals")
	assert.Contains(t, text, "Ctrl-C ends the demo.")
	err = d.check(t.Context(), &out)
	assert.NoError(t, d.stop())
	require.NoError(t, err, log.String())
	assert.Equal(t, 3, strings.Count(out.String(), ": ok ("), out.String())
}

// A program that its API stops ends the demo without an error, and another one that cannot start takes the rest with it.
func TestDemoEnds(t *testing.T) {
	var log buffer
	d, err := start(t.Context(), config{dir: t.TempDir(), log: &log, startSSH: embedded})
	require.NoError(t, err, log.String())
	taken := d.port(routeSSH)
	_, err = start(t.Context(), config{dir: t.TempDir(), port: taken, log: new(buffer), startSSH: embedded})
	require.ErrorIs(t, err, errs.ListenFailed)
	other, err := start(t.Context(), config{dir: t.TempDir(), port: taken, anyPort: true, log: new(buffer), startSSH: embedded})
	require.NoError(t, err, "a port that is only preferred")
	assert.NotEqual(t, taken, other.port(routeSSH))
	require.NoError(t, other.stop())

	answer, err := http.Post("http://"+d.sidecar.AdminAddr().String()+"/quitquitquit", "", nil)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	http.DefaultClient.CloseIdleConnections()
	require.NoError(t, d.wait(t.Context()))
	require.NoError(t, d.stop())
	_, err = net.Dial("tcp", d.server.Addr())
	require.Error(t, err)
}

func TestStartIsCutShort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := start(ctx, config{dir: t.TempDir(), log: new(buffer), startSSH: embedded})
	require.ErrorIs(t, err, context.Canceled)
}

func TestDirectoriesThatCannotBeUsed(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"a b", "a%h", "a$HOME", "a'b", `a"b`} {
		_, _, err := workDir(filepath.Join(root, name))
		require.ErrorIs(t, err, errs.ConfigInvalid, name)
	}
	file := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, _, err := workDir(file)
	require.ErrorIs(t, err, errs.ConfigInvalid)
	dir, remove, err := workDir(filepath.Join(root, "ü-1_x.y"))
	require.NoError(t, err)
	require.NoError(t, remove())
	require.DirExists(t, dir, "a directory that was asked for stays")
}
