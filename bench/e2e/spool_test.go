package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	sidecarconfig "fairlead/sidecar/config"
)

// received is the set of contents that ended in order at a target.
type received struct {
	mu     sync.Mutex
	hashes map[[sha256.Size]byte]int
}

func (r *received) serve(c halfCloser) {
	sum := sha256.New()
	if _, err := io.Copy(sum, c); err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hashes[[sha256.Size]byte(sum.Sum(nil))]++
}

// missing are those that did not come.
func (r *received) missing(want map[[sha256.Size]byte]int64) (sizes []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for hash, size := range want {
		if r.hashes[hash] == 0 {
			sizes = append(sizes, size)
		}
	}
	return sizes
}

// shipper sends connection after connection and keeps the hashes of those that were acknowledged.
type shipper struct {
	mu    sync.Mutex
	next  uint64
	acked map[[sha256.Size]byte]int64
}

func (s *shipper) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acked)
}

// ship sends one connection. An error is one that was not acknowledged.
func (s *shipper) ship(addr string) error {
	s.mu.Lock()
	s.next++
	seed := s.next
	s.mu.Unlock()
	size := int64(1 + seed*seed*7919%300_000)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.Copy(c, contentOf(seed, size)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked[contentHash(seed, size)] = size
	return nil
}

// withSpool lets the first listener spool, and deliver whole connections anew, so that hashes tell what came.
func withSpool() option {
	return withSidecar(func(c *sidecarconfig.Config) {
		c.Listeners[0].Delivery, c.Listeners[0].Priority = sidecarconfig.DeliverySpool, "low"
		c.Spool.Resume, c.Spool.OpensPerMinute = "start", 0
	})
}

// The sidecar's binary is killed again and again while applications send: whatever was acknowledged arrives.
//
// Verifies: R5.9, R5.10
func TestWhatWasAcknowledgedArrivesThoughTheSidecarIsKilled(t *testing.T) {
	sink := &received{hashes: map[[sha256.Size]byte]int{}}
	w := newWorld(t, withoutSidecar(), withHeldTunnels(0), withTarget("sink", newTarget(t, sink.serve)), withSpool())
	w.sidecarConfig.Spool.Dir = w.dir + "/spool"
	s := &shipper{acked: map[[sha256.Size]byte]int64{}}
	for round := range 4 {
		n := w.sidecarProcess()
		var senders sync.WaitGroup
		for range 3 {
			senders.Go(func() {
				for s.ship(n.addresses["sink"]) == nil {
				}
			})
		}
		await(t, "some are acknowledged", func() bool { return s.count() >= 8*(round+1) })
		n.proc.kill()
		senders.Wait()
	}
	w.sidecar = w.sidecarProcess()
	await(t, "all have arrived", func() bool { return len(sink.missing(s.acked)) == 0 })
	await(t, "the spool is empty", func() bool { return w.status().Spool.Connections == 0 })
	st := w.status().Spool
	assert.Zero(t, st.Quarantined)
	assert.Zero(t, st.Dropped)
	_, exe := binaries(t)
	out, told, code := command(t, nil, exe, "spool", "list", "--json", "--config", configFile(w, "spool", w.sidecarConfig), "--set", "admin.listen="+w.sidecar.admin)
	require.Equal(t, errs.ExitDone, code, told)
	var list struct{ Connections []any }
	require.NoError(t, json.Unmarshal([]byte(out), &list))
	assert.Empty(t, list.Connections)
}

// A gateway that is away costs spooled connections nothing but time, also over a stop of the sidecar in between.
//
// Verifies: R5.9, R8.1
func TestSpooledConnectionsOutliveAStopWithoutAGateway(t *testing.T) {
	sink := &received{hashes: map[[sha256.Size]byte]int{}}
	w := newWorld(t, withProcesses(), withTarget("sink", newTarget(t, sink.serve)), withSpool(), func(w *world) { w.sidecarConfig.Spool.Dir = w.dir + "/spool" })
	require.NoError(t, w.proxy.Refuse())
	w.proxy.Cut()
	s := &shipper{acked: map[[sha256.Size]byte]int64{}}
	for range 5 {
		require.NoError(t, s.ship(w.sidecar.addresses["sink"]), "it is acknowledged without a gateway")
	}
	require.NoError(t, w.sidecar.stop())
	assert.Len(t, sink.missing(s.acked), 5)
	kept := w.sidecar.logs.wait(t, "spool closed", "reason", "kept")
	assert.Equal(t, 5.0, kept["connections"])
	_, exe := binaries(t)
	out, told, code := command(t, nil, exe, "spool", "list", "--config", configFile(w, "spool", w.sidecarConfig))
	require.Equal(t, errs.ExitDone, code, told)
	assert.Equal(t, 5, bytes.Count([]byte(out), []byte("waiting")))
	require.NoError(t, w.proxy.Accept())
	w.startSidecar()
	await(t, "all have arrived", func() bool { return len(sink.missing(s.acked)) == 0 })
}
