package session_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

func try(w *world, who session.Identity) (*session.Opened, error) {
	return w.Opener().Open(context.Background(), session.Ask{Who: session.NewBearer(who), Route: "git"}, slog.New(slog.NewTextHandler(w.log, nil)))
}

// Verifies: R2.9, R4.2
func TestEachRefusalIsItsOwn(t *testing.T) {
	expired := alice()
	expired.Expires = time.Now()
	for code, change := range map[errs.Code]func(*session.OpenerConfig, *limits, *session.Identity){
		errs.TokenExpired: func(_ *session.OpenerConfig, _ *limits, who *session.Identity) { *who = expired },
		errs.RouteForbidden: func(c *session.OpenerConfig, _ *limits, _ *session.Identity) {
			c.Policy = policy(func(string, string) error { return errs.New(errs.RouteForbidden, "not yours") })
		},
		errs.OpenRate: func(_ *session.OpenerConfig, l *limits, _ *session.Identity) {
			l.open = errs.New(errs.OpenRate, "too fast")
		},
		errs.BackendUnreachable: func(c *session.OpenerConfig, _ *limits, _ *session.Identity) {
			c.Backends = backends(func(context.Context, string, string) (relay.Conn, error) {
				return nil, errs.New(errs.BackendUnreachable, "gone")
			})
		},
	} {
		who := alice()
		var held *limits
		w := newWorld(t, func(c *session.Config, o *session.OpenerConfig) {
			held = o.Limits.(*limits)
			change(o, held, &who)
		})
		_, err := try(w, who)
		assert.ErrorIs(t, err, code)
		assert.Equal(t, [2]int{}, held.held(), "a refusal holds nothing")
		assert.True(t, w.metric(`fairlead_gateway_streams_refused_total{code="`+code.String()+`"} 1`), "%v", code)
		assert.Contains(t, w.log.String(), "code="+code.String())
		w.close()
	}
}

func TestThePolicyComesBeforeTheLimits(t *testing.T) {
	w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
		o.Policy = policy(func(string, string) error { return errs.New(errs.RouteForbidden, "not yours") })
		o.Limits.(*limits).open = errs.New(errs.OpenRate, "too fast")
	})
	_, err := try(w, alice())
	assert.ErrorIs(t, err, errs.RouteForbidden, "what a tenant may not have costs it no rate")
	w.close()
}

// Verifies: R5.6, R3.8
func TestAnOpenIsNotWaitedForForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
			o.Backends = backends(func(ctx context.Context, _, _ string) (relay.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
		})
		s := w.mustConnect(alice())
		start := time.Now()
		st, err := s.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		err = st.WaitOpened(context.Background())
		assert.ErrorIs(t, err, errs.OpenTimeout)
		assert.Equal(t, 30*time.Second, time.Since(start))
		assert.True(t, w.metric("fairlead_gateway_opens_slow_total 1"))
		assert.Contains(t, w.log.String(), "slow open")
		s.leave()
		w.close()
	})
}

func TestAClientThatLeavesEndsItsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := make(chan error, 1)
		w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
			o.Backends = backends(func(ctx context.Context, _, _ string) (relay.Conn, error) {
				<-ctx.Done()
				left <- context.Cause(ctx)
				return nil, errs.Wrap(errs.Canceled, ctx.Err(), "left")
			})
		})
		s := w.mustConnect(alice())
		st, err := s.Open(link.OpenRequest{Route: "git"})
		require.NoError(t, err)
		synctest.Wait()
		st.Reset(errs.New(errs.Canceled, "the application went away"))
		assert.ErrorIs(t, <-left, errs.Canceled)
		s.leave()
		w.close()
	})
}

func TestABackendWithoutACodeIsAFaultOfOurs(t *testing.T) {
	w := newWorld(t, func(_ *session.Config, o *session.OpenerConfig) {
		o.Backends = backends(func(context.Context, string, string) (relay.Conn, error) { return nil, errors.New("odd") })
	})
	_, err := try(w, alice())
	assert.Equal(t, errs.Internal, errs.CodeOf(err))
	w.close()
}
