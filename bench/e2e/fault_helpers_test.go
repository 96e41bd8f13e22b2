package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	sidecarapp "fairlead/sidecar/app"
	sidecarconfig "fairlead/sidecar/config"
)

// stateConnected is the state, in the sidecar's status, of a tunnel that carries streams.
const stateConnected = "connected"

// withQuickLink lets both sides notice silence after half a second, and attempts to connect end early.
func withQuickLink() option {
	return func(w *world) {
		w.gatewayConfig.Tunnel.Heartbeat, w.sidecarConfig.Tunnel.Heartbeat = 400*time.Millisecond, 400*time.Millisecond
		w.sidecarConfig.Gateway.ConnectTimeout = 2 * time.Second
	}
}

// withTunnels lets the sidecar keep n tunnels, no more and no less.
func withTunnels(n int) option {
	return withSidecar(func(c *sidecarconfig.Config) { c.Tunnels = sidecarconfig.Tunnels{Min: n, Max: n} })
}

// withListener adds a listener for a route that another option has added.
func withListener(name, route, priority string) option {
	return func(w *world) { w.addListener(name, route, loopback, priority) }
}

// withDrain sets how long both programs let connections finish.
func withDrain(d time.Duration) option {
	return func(w *world) { w.gatewayConfig.Shutdown.Drain, w.sidecarConfig.Shutdown.Drain = d, d }
}

// withHeldTunnels sets how long the gateway holds a tunnel without a WebSocket.
func withHeldTunnels(ttl time.Duration) option {
	return withGateway(func(c *gatewayconfig.Config) { c.Tunnel.ResumeTTL = ttl })
}

// status asks the sidecar's admin API.
func (w *world) status() (st sidecarapp.Status) {
	w.t.Helper()
	require.NoError(w.t, json.Unmarshal([]byte(get(w.t, w.sidecar.url("/api/status"))), &st))
	return st
}

// connected lists the ids of the tunnels that carry streams; for a sidecar inside this process, from any goroutine.
func (w *world) connected() (ids []string) {
	for _, t := range w.sidecar.app.Status().Tunnels {
		if t.State == stateConnected {
			ids = append(ids, t.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// waitConnected waits for n tunnels and returns their ids.
func (w *world) waitConnected(n int) []string {
	w.t.Helper()
	await(w.t, fmt.Sprintf("%d tunnels are up", n), func() bool { return len(w.connected()) == n })
	return w.connected()
}

// resumes counts the WebSockets after the first, of all tunnels of a sidecar inside this process.
func (w *world) resumes() (n uint64) {
	for _, t := range w.sidecar.app.Status().Tunnels {
		n += t.Resumes
	}
	return n
}

// cutAndResume resets the network, and waits until the sidecar's one tunnel has resumed.
func (w *world) cutAndResume() {
	w.t.Helper()
	before := w.resumes()
	require.Positive(w.t, w.proxy.Cut())
	await(w.t, "the tunnel resumes", func() bool { return w.resumes() > before && len(w.connected()) == 1 })
}

// heldTunnel is what the gateway says about a tunnel.
type heldTunnel struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Streams int    `json:"streams"`
	Resumes uint64 `json:"resumes"`
}

func (w *world) heldTunnels() (list []heldTunnel) {
	w.t.Helper()
	require.NoError(w.t, json.Unmarshal([]byte(get(w.t, w.gateway.url("/api/tunnels"))), &list))
	return list
}

// waitQuiet waits until both sides have forgotten all streams.
func (w *world) waitQuiet() {
	w.t.Helper()
	await(w.t, "both sides forget what has ended", func() bool {
		n := 0
		for _, t := range w.heldTunnels() {
			n += t.Streams
		}
		for _, t := range w.status().Tunnels {
			n += t.Streams
		}
		return n == 0
	})
}

// code is how a log shows a code.
func code(c errs.Code) string { return c.String() }

// tracked is a target that knows its connections and how they broke.
type tracked struct {
	addr string

	mu     sync.Mutex
	open   map[halfCloser]bool
	total  int
	broken []error
}

// newTracked is newTarget with a serve that tells how a connection broke.
func newTracked(t *testing.T, serve func(halfCloser) error) *tracked {
	t.Helper()
	k := &tracked{open: map[halfCloser]bool{}}
	k.addr = newTarget(t, func(c halfCloser) {
		k.mu.Lock()
		k.open[c] = true
		k.total++
		k.mu.Unlock()
		err := serve(c)
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.open, c)
		if err != nil {
			k.broken = append(k.broken, err)
		}
	})
	return k
}

// reset breaks the open connections.
func (k *tracked) reset(t *testing.T) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.open {
		require.NoError(t, c.(*net.TCPConn).SetLinger(0))
		require.NoError(t, c.Close())
	}
}

func (k *tracked) opened() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.open)
}

func (k *tracked) errors() []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.broken)
}

// echoing is echo that tells how it broke.
func echoing(c halfCloser) error {
	if _, err := io.Copy(c, struct{ io.Reader }{c}); err != nil {
		return err
	}
	return c.CloseWrite()
}

// downSeed is of what hashing sends.
const downSeed = 2

// hashing reads how much to send (u64), sends that much content while it reads to the end, and then the hash of what it
// read.
func hashing(c halfCloser) error {
	var header [8]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, contentOf(downSeed, int64(binary.BigEndian.Uint64(header[:]))))
		sent <- err
	}()
	sum := sha256.New()
	_, err := io.Copy(sum, c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	_, err = c.Write(sum.Sum(nil))
	return errors.Join(err, c.CloseWrite())
}

// contentHash is the SHA-256 of content.
func contentHash(seed uint64, n int64) [sha256.Size]byte {
	sum, _ := copyHashed(io.Discard, contentOf(seed, n)) // neither fails
	return sum
}

// copyHashed copies to the end and returns the SHA-256 of what it copied.
func copyHashed(w io.Writer, r io.Reader) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(w, h), r)
	h.Sum(sum[:0])
	return sum, err
}

// transferBoth sends up bytes to a hashing target, receives down bytes, and compares both hashes.
func transferBoth(ctx context.Context, addr string, seed uint64, up, down int64) error {
	return converse(ctx, addr, func(c halfCloser) error {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(down))); err != nil {
			return err
		}
		sent := sending(c, seed, up)
		got, err := copyHashed(io.Discard, io.LimitReader(c, down))
		if err := errors.Join(err, <-sent); err != nil {
			return err
		}
		receipt, err := io.ReadAll(c)
		want := contentHash(seed, up)
		switch {
		case err != nil:
			return fmt.Errorf("receipt: %w", err)
		case string(receipt) != string(want[:]):
			return fmt.Errorf("%d bytes up have the hash %x, the target says %x", up, want, receipt)
		case got != contentHash(downSeed, down):
			return fmt.Errorf("%d bytes down have the hash %x", down, got)
		}
		return nil
	})
}

// mirrored sends n bytes to an echoing target, and compares what comes back.
func mirrored(ctx context.Context, addr string, seed uint64, n int64) error {
	return converse(ctx, addr, func(c halfCloser) error {
		sent := sending(c, seed, n)
		got, err := copyHashed(io.Discard, c)
		if err := errors.Join(err, <-sent); err != nil {
			return err
		}
		if want := contentHash(seed, n); got != want {
			return fmt.Errorf("%d bytes with the hash %x came back as %x", n, want, got)
		}
		return nil
	})
}

// sending sends content and half-closes, in a goroutine.
func sending(c halfCloser, seed uint64, n int64) <-chan error {
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, contentOf(seed, n))
		sent <- errors.Join(err, c.CloseWrite())
	}()
	return sent
}

// converse connects, and breaks the connection when ctx ends.
func converse(ctx context.Context, addr string, f func(halfCloser) error) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	return f(c.(halfCloser))
}

// roundTrip sends text to an echoing target and waits for it.
func roundTrip(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back for %q", got, text)
	}
	return nil
}

// requireReset reads until the connection ends, which must be by a reset and not in order.
func requireReset(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	require.ErrorIs(t, err, syscall.ECONNRESET)
}
