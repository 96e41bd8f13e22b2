package session_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

// refusing has neither routes nor a policy that allows anything: a probe needs none.
func refusing(c *session.Config, o *session.OpenerConfig) {
	o.Policy = policy(func(string, string) error { return errs.New(errs.RouteForbidden, "not yours") })
	o.Backends = backends(func(context.Context, string, string) (relay.Conn, error) {
		return nil, errs.New(errs.RouteUnknown, "no such route")
	})
}

// No configuration can name a route as the probe is named.
func TestProbeIsNoConfigurableName(t *testing.T) {
	assert.False(t, config.ValidName(link.ProbeRoute))
}

// Whoever has a token may have its bytes returned, whatever the policy says. That is recorded, and counted apart from
// what routes do.
//
// Verifies: R2.6
func TestProbeReturnsEveryByteWithoutABackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &records{}
		w := newWorld(t, func(c *session.Config, o *session.OpenerConfig) {
			audited(r)(c, o)
			refusing(c, o)
			o.Observe = func(time.Duration) { t.Error("observed as an open of a route") }
		})
		s := w.mustConnect(alice())
		st := s.openRoute(t, link.ProbeRoute)
		assert.Equal(t, [2]int{1, 1}, w.limits.held(), "it takes a stream of the tenant")
		sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		go func() {
			_, err := st.Write(sent)
			assert.NoError(t, err)
			assert.NoError(t, st.CloseWrite())
		}()
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		assert.Equal(t, sha256.Sum256(sent), sha256.Sum256(got))
		require.NoError(t, st.Wait())
		synctest.Wait()
		assert.Equal(t, []string{"connect allowed", "open allowed _probe", "close allowed _probe"}, r.told())
		for _, line := range []string{`fairlead_gateway_probes_total{result="opened"} 1`, `fairlead_gateway_probes_total{result="refused"} 0`,
			fmt.Sprintf(`fairlead_gateway_probe_bytes_total{direction="sent"} %d`, len(sent)), fmt.Sprintf(`fairlead_gateway_probe_bytes_total{direction="received"} %d`, len(sent)),
			"fairlead_gateway_streams_opened_total 0", "fairlead_gateway_open_seconds_count 0", `fairlead_gateway_bytes_total{direction="sent"} 0`} {
			assert.True(t, w.metric(line), line)
		}
		assert.Equal(t, session.Totals{}, w.Totals())
		assert.Empty(t, w.Opener().TenantTotals())
		s.leave()
		w.close()
	})
}

func TestProbesAreRefusedLikeStreams(t *testing.T) {
	for code, change := range map[errs.Code]func(*limits, *session.OpenerConfig, *session.Identity){
		errs.OpenRate: func(l *limits, _ *session.OpenerConfig, _ *session.Identity) {
			l.open = errs.New(errs.OpenRate, "too fast")
		},
		errs.Overloaded: func(l *limits, _ *session.OpenerConfig, _ *session.Identity) {
			l.shed = func(link.Priority) error { return errs.New(errs.Overloaded, "busy") }
		},
		errs.TokenExpired: func(_ *limits, _ *session.OpenerConfig, who *session.Identity) {
			who.Expires = time.Now()
		},
		errs.TokenRevoked: func(_ *limits, o *session.OpenerConfig, _ *session.Identity) {
			o.Revoked = func(session.Identity) error { return errs.New(errs.TokenRevoked, "revoked") }
		},
		errs.AuditFailed: func(_ *limits, o *session.OpenerConfig, _ *session.Identity) {
			r := &records{fail: errs.New(errs.AuditFailed, "disk full")}
			o.Audit = r
		},
	} {
		who := alice()
		w := newWorld(t, func(c *session.Config, o *session.OpenerConfig) { change(o.Limits.(*limits), o, &who) })
		_, err := w.Opener().Open(context.Background(), session.Ask{Who: session.NewBearer(who), Route: link.ProbeRoute}, slog.New(slog.NewTextHandler(w.log, nil)))
		assert.ErrorIs(t, err, code)
		assert.Equal(t, [2]int{}, w.limits.held())
		assert.True(t, w.metric(`fairlead_gateway_probes_total{result="refused"} 1`))
		assert.Contains(t, w.log.String(), "code="+code.String())
		w.close()
	}
}

func TestAProbeIsBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, refusing)
		s := w.mustConnect(alice())
		start := time.Now()
		st := s.openRoute(t, link.ProbeRoute)
		_, err := st.Write([]byte("still here"))
		require.NoError(t, err)
		assert.ErrorIs(t, st.Wait(), errs.ProbeOver)
		assert.Equal(t, link.ProbeTime, time.Since(start))
		synctest.Wait()
		assert.Equal(t, [2]int{1, 0}, w.limits.held())
		s.leave()
		w.close()
	})
}

func TestAProbeIsBoundedInBytes(t *testing.T) {
	w := newWorld(t, refusing)
	opened, err := w.Opener().Open(context.Background(), session.Ask{Who: session.NewBearer(alice()), Route: link.ProbeRoute}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ended := make(chan error, 1)
	opened.Carry(func() (uint64, uint64) { return 0, 0 }, func(err error) {
		ended <- err
		opened.Conn.Close()
	})
	read := make(chan int64)
	go func() {
		n, _ := io.Copy(io.Discard, opened.Conn)
		read <- n
	}()
	piece := make([]byte, 1<<20)
	for range link.ProbeBytes / len(piece) {
		_, err := opened.Conn.Write(piece)
		require.NoError(t, err)
	}
	_, err = opened.Conn.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)
	_, err = opened.Conn.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe, "again")
	over := <-ended
	assert.ErrorIs(t, over, errs.ProbeOver)
	assert.EqualValues(t, link.ProbeBytes, <-read)
	opened.Over(over)
	w.close()
}

// A changed policy does not end probes; a revocation does.
func TestProbesAndChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, refusing)
		s := w.mustConnect(alice())
		st := s.openRoute(t, link.ProbeRoute)
		assert.Zero(t, w.Opener().Recheck(func(session.Identity, string) error { return errs.New(errs.RouteForbidden, "no") }))
		require.Len(t, w.Opener().Streams(), 1)
		_, streams := w.Enforce(func(session.Identity) error { return errs.New(errs.TokenRevoked, "revoked") })
		assert.Equal(t, 1, streams)
		assert.ErrorIs(t, st.Wait(), errs.TokenRevoked)
		synctest.Wait()
		s.leave()
		w.close()
	})
}
