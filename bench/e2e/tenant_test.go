package e2e

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// twoTenants lets each of two tenants reach a route of its own.
func twoTenants(c *gatewayconfig.Config) {
	c.Policy = []gatewayconfig.Rule{
		{Tenants: []string{"victim"}, Routes: []string{"vault"}},
		{Tenants: []string{"hostile"}, Routes: []string{"public"}},
	}
}

// Verifies: R4.1, R10.7
func TestAHostileTenantReachesNothing(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withGateway(twoTenants),
		withTarget("vault", newTarget(t, echoServer)), withTarget("public", newTarget(t, echoServer)), withTarget("off", closedAddr(t)))
	victim, hostile := w.token("victim", time.Hour), w.token("hostile", time.Hour)
	mine, lane := w.connectLink(victim)
	s, err := openLink(t, mine, "vault")
	require.NoError(t, err)
	echoes(t, s, "before")
	theirs, _ := w.connectLink(hostile)

	var told []string
	for _, route := range []string{"vault", "off", "none", "VAULT", "vault/", "../vault", "*", "127.0.0.1:22"} {
		_, err := openLink(t, theirs, route)
		require.ErrorIs(t, err, errs.RouteForbidden, route)
		told = append(told, strings.ReplaceAll(err.Error(), route, "ROUTE"))
	}
	for _, text := range told[1:] {
		assert.Equal(t, told[0], text, "the refusal tells nothing about a route: not whether it exists, works, or is somebody's")
	}
	status, answer := w.refusal("vault", hostile)
	assert.Equal(t, 403, status)
	assert.Equal(t, errs.RouteForbidden.String(), answer.Code)
	own, err := openLink(t, theirs, "public")
	require.NoError(t, err, "its own route works")
	echoes(t, own, "mine")

	// The tunnel's id and even its key are stolen, from memory: mine is the victim's own.
	_, stolenErr := w.resumeLink(mine, hostile)
	require.ErrorIs(t, stolenErr, errs.TunnelUnknown)
	echoes(t, s, "the victim notices nothing")

	lane.Abort()
	<-lane.ended
	held := func() bool {
		for _, tunnel := range w.gateway.tunnels(t) {
			if tunnel.ID == mine.Name() {
				return tunnel.State == "detached"
			}
		}
		return false
	}
	await(t, "the gateway holds the tunnel", held)
	refusedLane, heldErr := w.resumeLink(mine, hostile)
	require.ErrorIs(t, heldErr, errs.TunnelUnknown)
	assert.Equal(t, stolenErr.Error(), heldErr.Error())
	assert.Equal(t, errs.CloseUnknown, refusedLane.closeFrame().Code)
	assert.True(t, held(), "and is still held for its owner")
	_, err = s.Write([]byte("over the cut"))
	require.NoError(t, err)
	_, err = w.resumeLink(mine, victim)
	require.NoError(t, err, "who resumes it")
	over := make([]byte, len("over the cut"))
	_, err = io.ReadFull(s, over)
	require.NoError(t, err)
	assert.Equal(t, "over the cut", string(over))

	mine.Close(nil)
	await(t, "the tunnel is gone", func() bool { return len(w.gateway.tunnels(t)) == 1 })
	_, goneErr := w.resumeLink(mine, hostile)
	require.ErrorIs(t, goneErr, errs.TunnelUnknown)
	assert.Equal(t, stolenErr.Error(), goneErr.Error(), "a tunnel of somebody else answers as one that does not exist")
	assert.NotEmpty(t, w.gateway.logs.find("resume refused: the tunnel belongs to another identity", "tenant", "hostile", "owner_tenant", "victim"))
	for _, e := range w.gateway.logs.find("stream opened", "route", "vault") {
		assert.Equal(t, "victim", e.str("tenant"))
	}
}

// Limits count for each tenant by itself.
func TestAHostileTenantUsesUpOnlyItsOwnLimits(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withGateway(twoTenants), withGateway(func(c *gatewayconfig.Config) {
		c.Tiers[gatewayconfig.DefaultTier] = gatewayconfig.Tier{OpensPerMinute: 5, Burst: 5, Tunnels: 2, Streams: 3}
	}), withTarget("vault", newTarget(t, echoServer)), withTarget("public", newTarget(t, echoServer)))
	victim, hostile := w.token("victim", time.Hour), w.token("hostile", time.Hour)
	theirs, _ := w.connectLink(hostile)
	w.connectLink(hostile)
	conn, err := w.dialLane(hostile)
	require.NoError(t, err)
	_, _, err = link.Connect(t.Context(), conn, link.Config{})
	require.ErrorIs(t, err, errs.TunnelLimit)
	assert.Equal(t, errs.CloseLimit, conn.closeFrame().Code)
	var open []*link.Stream
	for range 3 {
		s, err := openLink(t, theirs, "public")
		require.NoError(t, err)
		open = append(open, s)
	}
	_, err = openLink(t, theirs, "public")
	require.ErrorIs(t, err, errs.StreamLimit)
	for _, s := range open {
		s.Reset(errs.New(errs.Canceled, "to make room"))
	}
	await(t, "the streams have ended", func() bool { return w.streamsAtGateway() == 0 })
	for range 2 {
		_, err := openLink(t, theirs, "public")
		require.NoError(t, err)
	}
	_, err = openLink(t, theirs, "public")
	require.ErrorIs(t, err, errs.OpenRate)
	assert.InDelta(t, time.Minute/5, errs.From(err).RetryAfter, float64(time.Minute/5), "a refusal says when to try again")
	assert.Positive(t, errs.From(err).RetryAfter)

	mine, _ := w.connectLink(victim)
	s, err := openLink(t, mine, "vault")
	require.NoError(t, err, "the victim has its own limits")
	echoes(t, s, "still served")
}

// The gateway serves a tenant while another one uploads as fast as it can to a server that reads nothing.
//
// Verifies: R4.1
func TestAHostileTenantBlocksNobody(t *testing.T) {
	stuck := make(chan struct{})
	w := newWorld(t, withoutSidecar(), withGateway(twoTenants),
		withTarget("vault", newTarget(t, echoServer)), withTarget("public", newTarget(t, func(halfCloser) { <-stuck })))
	t.Cleanup(func() { close(stuck) }) // before the target waits for its connections
	theirs, _ := w.connectLink(w.token("hostile", time.Hour))
	var flood []io.Closer
	for range 8 {
		s, err := openLink(t, theirs, "public")
		require.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(s, contentOf(50, 1<<40)) // until the tunnel ends
		}()
		flood = append(flood, closerFunc(func() error { s.Reset(errs.New(errs.Canceled, "enough")); <-done; return nil }))
	}
	mine, _ := w.connectLink(w.token("victim", time.Hour))
	s, err := openLink(t, mine, "vault")
	require.NoError(t, err)
	r := bufio.NewReader(s)
	for range 200 {
		begin := time.Now()
		_, err := io.WriteString(s, "keystroke\n")
		require.NoError(t, err)
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "keystroke\n", line)
		require.Less(t, time.Since(begin), 5*time.Second, "a keystroke and its echo")
	}
	for _, f := range flood {
		require.NoError(t, f.Close())
	}
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
