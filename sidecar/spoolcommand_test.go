package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/spool"
)

func newSpool(t *testing.T, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.New(spool.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet(),
		Stream: func(context.Context, link.OpenRequest) (*link.Stream, error) {
			return nil, errs.New(errs.NoTunnel, "none")
		}})
	require.NoError(t, err)
	return s
}

// keep spools one connection.
func keep(t *testing.T, s *spool.Spool, route, data string) spool.ID {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	far, err := l.Accept()
	require.NoError(t, err)
	_, err = io.WriteString(c, data)
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	r, err := s.Accept(t.Context(), far, spool.Origin{Listener: "ship", Route: route, Priority: link.Low}, nil)
	require.NoError(t, err)
	return r.ID
}

func spoolRun(p spoolPlace, args ...string) (string, error) {
	cmd := spoolCommand(func() (spoolPlace, error) { return p, nil })
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

// The commands say and do the same beside a sidecar that runs and without one.
func TestSpoolCommands(t *testing.T) {
	for _, running := range []bool{true, false} {
		p := spoolPlace{Dir: filepath.Join(t.TempDir(), "spool")}
		s := newSpool(t, p.Dir)
		one, two, three := keep(t, s, "logs", "first"), keep(t, s, "metrics", "second one"), keep(t, s, "logs", "third")
		mux := http.NewServeMux()
		s.Routes(mux)
		srv := httptest.NewServer(mux)
		p.Admin = srv.Listener.Addr().String()
		if !running {
			srv.Close()
			require.NoError(t, s.Close(t.Context()))
		}

		out, err := spoolRun(p, "list")
		require.NoError(t, err)
		for _, want := range []string{one.String(), two.String(), "metrics", "waiting", "low", "3 connections and 0 in quarantine"} {
			assert.Contains(t, out, want)
		}
		out, err = spoolRun(p, "list", "--json")
		require.NoError(t, err)
		var l spool.Listing
		require.NoError(t, json.Unmarshal([]byte(out), &l))
		require.Len(t, l.Connections, 3)
		assert.Equal(t, one, l.Connections[0].ID)

		out, err = spoolRun(p, "show", two.String())
		require.NoError(t, err)
		assert.Regexp(t, `readable +bytes 0 to 10`, out)
		assert.Regexp(t, `end +clean`, out)
		out, err = spoolRun(p, "show", two.String(), "--json")
		require.NoError(t, err)
		var it spool.Item
		require.NoError(t, json.Unmarshal([]byte(out), &it))
		assert.Equal(t, uint64(10), it.Content.To)

		out, err = spoolRun(p, "retry", one.String())
		require.NoError(t, err)
		assert.Equal(t, one.String()+" will be tried\n", out)
		out, err = spoolRun(p, "drop", two.String())
		require.NoError(t, err)
		assert.Equal(t, two.String()+" dropped\n", out)
		_, err = spoolRun(p, "drop", two.String())
		assert.ErrorIs(t, err, errs.NotFound)
		_, err = spoolRun(p, "show", "../../etc/passwd")
		assert.ErrorIs(t, err, errs.BadRequest)
		for _, args := range [][]string{{"drop"}, {"drop", one.String(), "--all"}, {"show"}, {"retry", "a", "b"}} {
			_, err = spoolRun(p, args...)
			assert.ErrorIs(t, err, errs.ConfigInvalid, args)
		}
		out, err = spoolRun(p, "drop", "--all")
		require.NoError(t, err)
		assert.Equal(t, one.String()+" dropped\n"+three.String()+" dropped\n", out)
		out, err = spoolRun(p, "list")
		require.NoError(t, err)
		assert.Contains(t, out, "0 connections")
		if running {
			srv.Close()
			require.NoError(t, s.Close(t.Context()))
		}
	}
}

// A sidecar that has the spool but does not answer, or another program at the address, is said.
func TestSpoolCommandsSayWhoIsInTheWay(t *testing.T) {
	_, err := spoolRun(spoolPlace{}, "list")
	assert.ErrorIs(t, err, errs.ConfigInvalid)
	p := spoolPlace{Dir: filepath.Join(t.TempDir(), "spool")}
	_, err = spoolRun(p, "list")
	assert.ErrorIs(t, err, errs.SpoolUnusable)
	s := newSpool(t, p.Dir)
	defer func() { require.NoError(t, s.Close(t.Context())) }()
	_, err = spoolRun(p, "list")
	assert.ErrorIs(t, err, errs.SpoolUnusable)
	assert.ErrorContains(t, err, "in use by the process with id")

	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	p.Admin = other.Listener.Addr().String()
	_, err = spoolRun(p, "list")
	assert.ErrorContains(t, err, "is no sidecar with a spool")
	assert.ErrorContains(t, err, "in use")

	elsewhere := newSpool(t, filepath.Join(t.TempDir(), "elsewhere"))
	defer func() { require.NoError(t, elsewhere.Close(t.Context())) }()
	mux := http.NewServeMux()
	elsewhere.Routes(mux)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	p.Admin = strings.TrimPrefix(srv.URL, "http://")
	_, err = spoolRun(p, "list")
	assert.ErrorContains(t, err, "has its spool at")

	refused := errs.New(errs.ConfigInvalid, "no configuration")
	cmd := spoolCommand(func() (spoolPlace, error) { return spoolPlace{}, refused })
	cmd.SetArgs([]string{"list"})
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	assert.ErrorIs(t, cmd.Execute(), errs.ConfigInvalid)
	_, err = os.Stat(filepath.Join(p.Dir, "lock"))
	assert.NoError(t, err)
}
