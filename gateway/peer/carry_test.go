package peer_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/gateway/peer"
	"fairlead/shared/errs"
)

// wire is both ends of a TCP connection.
func wire(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(); s.Close() })
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

// carried is a relay between two ends that are the test's.
type carried struct {
	*port
	client, owner *net.TCPConn // far ends
	over          chan outcome
}

type outcome struct {
	sent, received uint64
	err            error
}

func carry(t testing.TB, ctx context.Context) *carried {
	t.Helper()
	c := &carried{port: startPort(t, peer.Config{SecretFile: secretFile(t, secret), Admit: nobody}), over: make(chan outcome, 1)}
	nearClient, client := wire(t)
	nearOwner, owner := wire(t)
	c.client, c.owner = client, owner
	go func() {
		sent, received, err := c.Carry(ctx, peer.Relay{Tunnel: "1", Owner: "a", Client: "192.0.2.7"}, nearClient, nearOwner)
		c.over <- outcome{sent, received, err}
	}()
	require.Eventually(t, func() bool { return len(c.Relays()) == 1 }, 10*time.Second, time.Millisecond)
	return c
}

func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(from, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(to, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// Whichever end closes in order ends both, after what was still on its way the other way.
func TestAnEndEndsBoth(t *testing.T) {
	for _, first := range []string{"client", "owner"} {
		t.Run(first, func(t *testing.T) {
			c := carry(t, t.Context())
			one, two := c.client, c.owner
			if first == "owner" {
				one, two = two, one
			}
			say(t, one, two, "hello")
			require.NoError(t, one.CloseWrite())
			got, err := io.ReadAll(two)
			require.NoError(t, err)
			require.Empty(t, got)
			say(t, two, one, "a last word")
			require.NoError(t, two.Close())
			_, err = io.ReadAll(one)
			require.NoError(t, err)
			o := <-c.over
			require.NoError(t, o.err)
			want := outcome{sent: 11, received: 5}
			if first == "owner" {
				want = outcome{sent: 5, received: 11}
			}
			require.Equal(t, want, o)
			require.True(t, c.metric(`fairlead_gateway_relays_total{result="ended"} 1`))
			require.True(t, c.metric("fairlead_gateway_relays 0"))
		})
	}
}

// An end that never closes is cut a moment after the other one has.
func TestAnEndDoesNotWaitForEver(t *testing.T) {
	c := carry(t, t.Context())
	require.NoError(t, c.client.CloseWrite())
	o := <-c.over
	require.NoError(t, o.err)
	_, err := c.owner.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

// An owner that dies in the middle of a transfer ends the relay at once, also when the sidecar is being written to.
func TestAnOwnerThatDies(t *testing.T) {
	c := carry(t, t.Context())
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.Copy(c.client, endless{}) // until it breaks
	}()
	_, err := io.CopyN(io.Discard, c.owner, 3<<20)
	require.NoError(t, err)
	require.NoError(t, c.owner.SetLinger(0))
	require.NoError(t, c.owner.Close())
	o := <-c.over
	require.ErrorIs(t, o.err, errs.LaneLost)
	require.GreaterOrEqual(t, o.received, uint64(3<<20))
	<-written
	_, err = io.Copy(io.Discard, c.client)
	_ = err // an end or a reset
	require.True(t, c.metric(`fairlead_gateway_relays_total{result="broken"} 1`))
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// The context, CutAll, End and Shutdown cut a relay in which both ends do nothing, or do not read.
func TestRelaysAreCut(t *testing.T) {
	for name, end := range map[string]func(c *carried, cancel func()){
		"context":  func(_ *carried, cancel func()) { cancel() },
		"CutAll":   func(c *carried, _ func()) { c.CutAll() },
		"End":      func(c *carried, _ func()) { c.End(context.Background(), 20*time.Millisecond) },
		"Shutdown": func(c *carried, _ func()) { _ = c.Shutdown(context.Background()) },
	} {
		for _, busy := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " busy"}[busy], func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c := carry(t, ctx)
				wrote := make(chan struct{})
				go func() {
					defer close(wrote)
					if busy { // until nobody takes any more
						_, _ = io.Copy(c.client, endless{})
					}
				}()
				if busy {
					require.Eventually(t, func() bool { return c.Relays()[0].Received > 1<<20 }, 10*time.Second, time.Millisecond)
				}
				end(c, cancel)
				o := <-c.over
				if name == "context" {
					require.ErrorIs(t, o.err, errs.Canceled)
				} else {
					require.ErrorIs(t, o.err, errs.ShuttingDown)
				}
				<-wrote
				require.True(t, c.metric(`fairlead_gateway_relays_total{result="cut"} 1`))
				require.Empty(t, c.Relays())
			})
		}
	}
}

// After Shutdown nothing is carried; both ends are closed.
func TestNothingIsCarriedAfterShutdown(t *testing.T) {
	p := startPort(t, peer.Config{SecretFile: secretFile(t, secret), Admit: nobody})
	require.NoError(t, p.Shutdown(t.Context()))
	client, farClient := wire(t)
	owner, farOwner := wire(t)
	_, _, err := p.Carry(t.Context(), peer.Relay{}, client, owner)
	require.ErrorIs(t, err, errs.ShuttingDown)
	for _, c := range []net.Conn{farClient, farOwner} {
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
}
