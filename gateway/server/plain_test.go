package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/server"
	"fairlead/shared/errs"
	"fairlead/shared/ws"
)

func TestPlainBytesBothWays(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	client := ws.NewBytes(conn)
	up, down := make([]byte, 3<<20), make([]byte, 2<<20)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	sent := make(chan error, 2)
	go func() {
		for rest := up; len(rest) > 0; rest = rest[min(len(rest), 100_000):] {
			if _, err := client.Write(rest[:min(len(rest), 100_000)]); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	go func() {
		_, err := backend.Write(down)
		sent <- err
	}()
	received := make(chan []byte, 1)
	go func() {
		got := make([]byte, len(up))
		_, _ = io.ReadFull(backend, got)
		received <- got
	}()
	got := make([]byte, len(down))
	_, err := io.ReadFull(client, got)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(down, got))
	assert.True(t, bytes.Equal(up, <-received))
	require.NoError(t, <-sent)
	require.NoError(t, <-sent)
	assert.True(t, f.metric("fairlead_gateway_plain_streams 1"))

	require.NoError(t, backend.Close())
	_, err = client.Read(got)
	assert.ErrorIs(t, err, io.EOF, "the backend's end is a normal close")
	f.eventually("over", f.slots.none)
	f.eventually("logged", func() bool { return bytes.Contains([]byte(f.log.String()), []byte("sent=2097152 received=3145728")) })
}

func TestTheClientsCloseIsAnEndForTheBackend(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	_, err := ws.NewBytes(conn).Write([]byte("last words"))
	require.NoError(t, err)
	conn.Close(errs.CloseNormal, "")
	got, err := io.ReadAll(backend)
	require.NoError(t, err, "an end, not a reset")
	assert.Equal(t, "last words", string(got))
	_, err = backend.Write([]byte("too late, but no fault"))
	require.NoError(t, err)
	require.NoError(t, backend.Close())
	f.eventually("over", f.slots.none)
	assert.NotContains(t, f.log.String(), "FL-S416")
}

func TestABackendThatDoesNotTakeTheEndIsNotWaitedForForever(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	defer backend.Close()
	conn.Close(errs.CloseNormal, "")
	f.eventually("over", f.slots.none)
}

func TestAClientThatBreaksEndsTheBackend(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	conn.Abort()
	_, err := io.ReadAll(backend)
	if err != nil {
		var broken *net.OpError
		assert.ErrorAs(t, err, &broken)
	}
	f.eventually("over", f.slots.none)
}

// Verifies: R6.7
func TestABackendThatBreaksSaysSo(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	require.NoError(t, backend.SetLinger(0))
	require.NoError(t, backend.Close())
	_, err := conn.NextReader()
	assert.ErrorIs(t, err, errs.BackendBroken)
	f.eventually("over", f.slots.none)
	f.eventually("logged", func() bool { return bytes.Contains([]byte(f.log.String()), []byte("code=FL-S416")) })
}

func TestAnUpgradeWhoseHandlerNeverRunsHoldsNothing(t *testing.T) {
	t.Parallel() // it takes as long as the deadline
	f := start(t, nil)
	// fasthttp answers 101 and then closes: "Connection: close" is stronger than the upgrade.
	c, err := net.Dial("tcp", f.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "GET /v1/stream/git HTTP/1.1\r\nHost: x\r\nAuthorization: "+token+"\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	require.NoError(t, err)
	backend := <-f.backend
	defer backend.Close()
	assert.False(t, f.slots.none())
	_, err = io.ReadAll(backend)
	assert.NoError(t, err, "ends")
	require.Eventually(t, f.slots.none, 20*time.Second, 10*time.Millisecond)
	assert.Contains(t, f.log.String(), "the client left before its upgrade was done", "the handler did not run")
	assert.True(t, f.metric("fairlead_gateway_plain_streams 0"))
}

// Verifies: R8.4
func TestDrainWaitsForPlainStreams(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		f.Drain(context.Background())
	}()
	f.eventually("no new ones", func() bool {
		resp, a := f.ask("GET", "/v1/stream/git", upgrade("Authorization", token)...)
		return resp.StatusCode == 503 && a.Code == errs.Draining.String()
	})
	select {
	case <-drained:
		t.Fatal("drained with a stream open")
	default:
	}
	_, err := backend.Write([]byte("still here"))
	require.NoError(t, err)
	_, err = io.ReadFull(ws.NewBytes(conn), make([]byte, 10))
	require.NoError(t, err)
	require.NoError(t, backend.Close())
	<-drained
}

// Verifies: R8.3
func TestShutdownCutsPlainStreamsAndSaysWhy(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	defer backend.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = f.Shutdown(ctx)
	}()
	_, err := conn.NextReader()
	assert.ErrorIs(t, err, errs.ShuttingDown)
	<-over
	f.eventually("over", f.slots.none)
}

func TestAStreamComesWithItsQuota(t *testing.T) {
	limit := 7
	f := start(t, func(c *server.Config) {
		c.Standing = func(tenant, _ string) errs.Quota {
			assert.Equal(t, "dev", tenant)
			return errs.Quota{Limit: uint32(limit), Remaining: 6, ResetMS: 1500}
		}
	})
	for range 2 {
		c := f.idle()
		_, err := io.WriteString(c, get("/v1/stream/git", lines()...))
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		backend := <-f.backend
		require.Equal(t, 101, resp.StatusCode)
		want := []string{"7", "6", "2"}
		if limit == 0 {
			want = []string{"", "", ""}
		}
		assert.Equal(t, want, []string{resp.Header.Get("X-RateLimit-Limit"), resp.Header.Get("X-RateLimit-Remaining"), resp.Header.Get("X-RateLimit-Reset")})
		c.Close()
		backend.Close()
		limit = 0
	}
}
