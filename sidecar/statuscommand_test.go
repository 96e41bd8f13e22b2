package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/status"
)

// command runs a command line of those that ask a running sidecar.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var flags sharedconfig.Flags
	root := &cobra.Command{Use: "sidecar", SilenceUsage: true, SilenceErrors: true}
	flags.Register(root.PersistentFlags())
	root.AddCommand(statusCommands(&flags)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// answering is a sidecar's admin API.
func answering(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func connected(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(status.Status{Instance: "pod-1", State: "connected", Ready: true, Quality: "good", RTT: 12})
}

// Verifies: R1.5, R2.8, R3.5
func TestStatusIsFoundByTheConfigurationOrTheFlag(t *testing.T) {
	srv := answering(t, connected)
	address := srv.Listener.Addr().String()
	file := filepath.Join(t.TempDir(), "c.yaml")
	require.NoError(t, os.WriteFile(file, []byte("admin: {listen: \""+address+"\"}\n"), 0o600))
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	require.NoError(t, os.WriteFile(broken, []byte("admin: [\n"), 0o600))
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)

	for _, args := range [][]string{
		{"--config", file}, // with no gateway, no listeners and no token
		{"--set", "admin.listen=" + address},
		{"--set", "admin.listen=0.0.0.0:" + port},
		{"--admin", address, "--config", broken},
		{"--admin", ":" + port, "--config", "/nonexistent.yaml"},
	} {
		out, err := command(t, append([]string{"status"}, args...)...)
		require.NoError(t, err, args)
		assert.Contains(t, out, "fairlead pod-1", args)
		assert.Contains(t, out, "● connected", args)
		assert.Contains(t, out, "quality good, round trip 12 ms, loss 0 %", args)
	}
	_, err = command(t, "status", "--config", broken)
	assert.ErrorIs(t, err, errs.ConfigInvalid)
	assert.ErrorContains(t, err, "--admin gives it")
	for _, args := range [][]string{{"--set", "admin.listen="}, {"--admin", "nonsense"}, {"--admin", address, "extra"}, {"--admin", address, "--watch", "--json"}} {
		_, err = command(t, append([]string{"status"}, args...)...)
		assert.Equal(t, errs.ExitConfiguration, errs.ExitCode(err), args)
	}
}

func TestStatusAsJSONIsTheAnswerAsItIs(t *testing.T) {
	const body = "{\n  \"state\": \"connected\", \"new in a later version\": [1]\n}\n"
	srv := answering(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(body)) })
	out, err := command(t, "status", "--json", "--admin", srv.Listener.Addr().String())
	require.NoError(t, err)
	assert.Equal(t, body, out)
}

func TestNoSidecarIsExitCode1(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.77.2:0") // nobody else takes a port of this address meanwhile
	require.NoError(t, err)
	address := l.Addr().String()
	l.Close()
	for _, name := range []string{"status", "drain", "quit", "reconnect"} {
		out, err := command(t, name, "--admin", address)
		assert.ErrorIs(t, err, errs.NoSidecar, name)
		assert.Equal(t, 1, errs.ExitCode(err), name)
		assert.Empty(t, out, name)
	}
	_, err = command(t, "wait", "--admin", address, "--timeout", "100ms")
	assert.Equal(t, 1, errs.ExitCode(err))
	_, err = command(t, "wait", "--admin", address, "--timeout", "-1s")
	assert.Equal(t, errs.ExitConfiguration, errs.ExitCode(err))
}

// Verifies: R8.10
func TestDrainQuitReconnectAndWait(t *testing.T) {
	var asked []string
	var stopping atomic.Bool
	var srv *httptest.Server
	ended := make(chan struct{})
	srv = answering(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		switch {
		case r.Method == http.MethodPost:
			stopping.Store(r.URL.Path == "/api/drain")
			w.WriteHeader(http.StatusAccepted)
		case r.URL.Path == "/api/status":
			_ = json.NewEncoder(w).Encode(status.Status{State: "connected", Shutdown: &status.Shutdown{Phase: "delivering", Connections: 3, SpoolBytes: 1_258_291}})
			go func() { // the sidecar ends
				srv.Close()
				close(ended)
			}()
		}
	})
	address := srv.Listener.Addr().String()
	for name, says := range map[string]string{"quit": "quitting\n", "reconnect": "reconnecting\n", "wait": "", "drain": "draining\n"} {
		out, err := command(t, name, "--admin", address)
		require.NoError(t, err, name)
		assert.Equal(t, says, out, name)
	}
	assert.ElementsMatch(t, []string{"POST /quitquitquit", "POST /api/reconnect", "GET /readyz", "POST /api/drain"}, asked)
	out, err := command(t, "drain", "--wait", "--admin", address)
	require.NoError(t, err)
	assert.Equal(t, "delivering: connections 3, spool 1.2 MiB\nended\n", out)
	assert.True(t, stopping.Load())
	<-ended
}

func TestWaitEndsWith4WhenTheSidecarHasGivenUp(t *testing.T) {
	srv := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		code, body := errs.HTTP(errs.New(errs.GaveUp, "gave up after 10 attempts").After(time.Second))
		w.WriteHeader(code)
		w.Write(body)
	})
	_, err := command(t, "wait", "--admin", srv.Listener.Addr().String())
	assert.Equal(t, 4, errs.ExitCode(err))
	assert.True(t, strings.Contains(err.Error(), "gave up after 10 attempts"), err)
}
