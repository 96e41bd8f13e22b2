package session_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/audit"
	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

// records keeps what was recorded, or fails.
type records struct {
	mu   sync.Mutex
	all  []audit.Event
	fail error
}

func (r *records) Record(e audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.all = append(r.all, e)
	return nil
}

// told is what was recorded, as "action result code route".
func (r *records) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, e := range r.all {
		code := ""
		if e.Code != 0 {
			code = e.Code.String()
		}
		out = append(out, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", e.Action, e.Result, code, e.Route)), " "))
	}
	return out
}

func (r *records) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func audited(r *records) func(*session.Config, *session.OpenerConfig) {
	return func(c *session.Config, o *session.OpenerConfig) { c.Audit, o.Audit = r, r }
}

func (s *sidecar) openRoute(t *testing.T, route string) *link.Stream {
	t.Helper()
	st, err := s.Open(link.OpenRequest{Route: route, Peer: "app:1"})
	require.NoError(t, err)
	require.NoError(t, st.WaitOpened(context.Background()))
	return st
}

func TestAChangedPolicyEndsTheStreamsThatItNoLongerAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &records{}
		w := newWorld(t, audited(r))
		s := w.mustConnect(alice())
		kept, taken := s.openRoute(t, "kept"), s.openRoute(t, "taken")
		ended := w.Opener().Recheck(func(who session.Identity, route string) error {
			assert.Equal(t, "payments/orders", who.Tenant)
			if route == "taken" {
				return errs.New(errs.RouteForbidden, "not any more")
			}
			return nil
		})
		assert.Equal(t, 1, ended)
		assert.ErrorIs(t, taken.Wait(), errs.RouteForbidden)
		_, err := kept.Write([]byte("on"))
		require.NoError(t, err)
		got := make([]byte, 2)
		_, err = io.ReadFull(kept, got)
		require.NoError(t, err)
		assert.Equal(t, "on", string(got), "what is still allowed goes on")
		synctest.Wait()
		assert.Equal(t, [2]int{1, 1}, w.limits.held())
		assert.Equal(t, []string{"connect allowed", "open allowed kept", "open allowed taken", "close refused FL-A204 taken"}, r.told())
		s.leave()
		w.close()
	})
}

// The policy changes while the backend is being connected: the open passed the old one, and is not among the streams that
// the change looks at.
func TestAPolicyThatChangesDuringAnOpenCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var forbidden sync.Map
		conn := newEcho()
		w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
			o.Policy = policy(func(_, route string) error {
				if _, no := forbidden.Load(route); no {
					return errs.New(errs.RouteForbidden, "not any more")
				}
				return nil
			})
			o.Backends = backends(func(context.Context, string, string) (relay.Conn, error) {
				forbidden.Store("git", true)
				return conn, nil
			})
		})
		s := w.mustConnect(alice())
		st, err := s.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		assert.ErrorIs(t, st.WaitOpened(context.Background()), errs.RouteForbidden)
		_, err = conn.Write([]byte("x"))
		assert.ErrorIs(t, err, io.ErrClosedPipe, "its backend connection is closed")
		assert.Empty(t, w.Opener().Streams())
		s.leave()
		w.close()
	})
}

// Verifies: R4.5
func TestARevocationEndsTunnelsAndStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &records{}
		w := newWorld(t, audited(r))
		other := alice()
		other.TokenID = "2"
		revoked, spared := w.mustConnect(alice()), w.mustConnect(other)
		st, untouched := revoked.open(t), spared.open(t)
		check := func(who session.Identity) error {
			if who.TokenID == "1" {
				return errs.New(errs.TokenRevoked, "token 1 was revoked")
			}
			return nil
		}
		tunnels, streams := w.Enforce(check)
		assert.Equal(t, []int{1, 1}, []int{tunnels, streams})
		assert.ErrorIs(t, st.Wait(), errs.TokenRevoked)
		err := <-revoked.lane
		assert.ErrorIs(t, err, errs.TokenRevoked)
		synctest.Wait()
		assert.NoError(t, spared.Err())
		assert.Len(t, w.Opener().Streams(), 1)
		untouched.Reset(nil)
		spared.leave()
		synctest.Wait()
		assert.Contains(t, r.told(), "disconnect refused FL-A207")
		w.close()
	})
}

// A token that is revoked between its check and the registration of its tunnel is found by neither.
func TestARevocationDuringTheHandshakeCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *session.Config, _ *session.OpenerConfig) {
			c.Revoked = func(session.Identity) error { return errs.New(errs.TokenRevoked, "just now") }
		})
		s, err := w.connect(alice())
		require.NoError(t, err, "the sidecar is told inside the link")
		assert.ErrorIs(t, <-s.lane, errs.TokenRevoked)
		synctest.Wait()
		assert.Empty(t, w.List())
		w.close()
	})
}

// Verifies: R4.9
func TestWhatIsNotRecordedDoesNotHappen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &records{}
		conn := newEcho()
		w := newWorld(t, func(c *session.Config, o *session.OpenerConfig) {
			audited(r)(c, o)
			o.Backends = backends(func(context.Context, string, string) (relay.Conn, error) { return conn, nil })
		})
		s := w.mustConnect(alice())
		r.set(errs.New(errs.AuditFailed, "the disk is full"))
		st, err := s.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		assert.ErrorIs(t, st.WaitOpened(context.Background()), errs.AuditFailed)
		_, err = conn.Write([]byte("x"))
		assert.ErrorIs(t, err, io.ErrClosedPipe)
		assert.Equal(t, [2]int{1, 0}, w.limits.held())
		late, err := w.connect(alice())
		require.NoError(t, err)
		assert.ErrorIs(t, <-late.lane, errs.AuditFailed)
		s.cut()
		require.NoError(t, w.resume(s, alice()))
		assert.ErrorIs(t, <-s.lane, errs.AuditFailed, "nor is a tunnel resumed")
		r.set(nil)
		again := w.mustConnect(alice())
		again.leave()
		w.close()
	})
}

// Verifies: R3.1, R3.2
func TestTenantsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
			o.Tenants = 2
			dial := o.Backends
			o.Backends = backends(func(ctx context.Context, tenant, route string) (relay.Conn, error) {
				if route == "down" {
					return nil, errs.New(errs.BackendUnreachable, "gone")
				}
				return dial.(backends)(ctx, tenant, route)
			})
			o.Policy = policy(func(_, route string) error {
				if route == "secret" {
					return errs.New(errs.RouteForbidden, "not yours")
				}
				return nil
			})
		})
		s := w.mustConnect(alice())
		for _, route := range []string{"down", "secret", "secret"} {
			st, err := s.Open(link.OpenRequest{Route: route})
			require.NoError(t, err)
			require.Error(t, st.WaitOpened(context.Background()))
		}
		st := s.open(t)
		w.Sample(2 * time.Second)
		_, err := st.Write(bytes.Repeat([]byte("x"), 1000))
		require.NoError(t, err)
		_, err = io.ReadFull(st, make([]byte, 1000))
		require.NoError(t, err)
		synctest.Wait()
		w.Sample(2 * time.Second)
		info := w.Opener().Streams()[0]
		assert.Equal(t, []any{uint64(1000), uint64(1000), 500.0, 500.0}, []any{info.Sent, info.Received, info.SentRate, info.ReceivedRate})
		assert.Equal(t, "of-git", info.To.Backend)
		assert.Equal(t, []any{500.0, 500.0}, []any{w.List()[0].SentRate, w.List()[0].ReceivedRate})
		lines := []string{
			`fairlead_gateway_tenant_opens_total{tenant="payments/orders",result="opened"} 1`,
			`fairlead_gateway_tenant_opens_total{tenant="payments/orders",result="refused"} 2`,
			`fairlead_gateway_tenant_opens_total{tenant="payments/orders",result="failed"} 1`,
			`fairlead_gateway_tenant_open_seconds_count{tenant="payments/orders"} 4`,
			`fairlead_gateway_tenant_bytes_total{tenant="payments/orders",direction="received"} 1000`,
			`fairlead_gateway_bytes_total{direction="sent"} 1000`,
		}
		for _, line := range lines {
			assert.True(t, w.metric(line), line)
		}
		_, err = st.Write([]byte("the rest"))
		require.NoError(t, err)
		require.NoError(t, st.CloseWrite())
		_, err = io.ReadAll(st)
		require.NoError(t, err)
		synctest.Wait()
		assert.True(t, w.metric(`fairlead_gateway_bytes_total{direction="received"} 1008`), "the last bytes count without a sample")
		s.leave()

		for i := range 4 {
			who := alice()
			who.Tenant = fmt.Sprintf("tenant-%d", i)
			one := w.mustConnect(who)
			one.open(t)
			one.leave()
		}
		assert.True(t, w.metric(`fairlead_gateway_tenant_opens_total{tenant="other",result="opened"} 3`), "the tenants in metrics are bounded")
		assert.Equal(t, uint64(3), w.Opener().TenantTotals()["other"].Opened)
		w.close()
	})
}

func TestOneStreamIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		s := w.mustConnect(alice())
		one, other := s.open(t), s.open(t)
		gone := errs.New(errs.ShuttingDown, "an operator ended the stream")
		assert.True(t, w.Opener().EndStream(s.Name(), "1", gone))
		assert.False(t, w.Opener().EndStream(s.Name(), "99", gone))
		assert.ErrorIs(t, one.Wait(), errs.ShuttingDown)
		synctest.Wait()
		list := w.Opener().Streams()
		require.Len(t, list, 1)
		assert.Equal(t, []string{s.Name(), "2", "app:1", "192.0.2.1"}, []string{list[0].Tunnel, list[0].Stream, list[0].App, list[0].Client})
		other.Reset(nil)
		s.leave()
		w.close()
	})
}

func TestOpensAreShedByPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		overloaded := errs.New(errs.Overloaded, "no time").After(time.Second)
		w := newWorld(t, nil)
		w.limits.shed = func(p link.Priority) error {
			if p == link.Low {
				return overloaded
			}
			return nil
		}
		s := w.mustConnect(alice())
		open := func(p link.Priority) error {
			st, err := s.Open(link.OpenRequest{Route: "git", Priority: p})
			require.NoError(t, err)
			return st.WaitOpened(context.Background())
		}
		assert.NoError(t, open(link.Normal))
		err := open(link.Low)
		assert.ErrorIs(t, err, errs.Overloaded)
		assert.Equal(t, time.Second, errs.From(err).RetryAfter)
		w.limits.shedTunnel = overloaded
		_, err = w.connect(alice())
		assert.ErrorIs(t, err, errs.Overloaded, "at the highest level no tunnels are made either")
		assert.Len(t, w.Opener().Streams(), 1, "what is open stays")
		s.leave()
		w.close()
	})
}
