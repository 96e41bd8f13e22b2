package link

import "testing"

// HeldBuffers is the number of buffers outside the pools.
func HeldBuffers() int64 { return held.Load() }

// MemTunnel is a sidecar's tunnel over memory, whose other end serves streams as server says.
func MemTunnel(t testing.TB, server, client Config) *Tunnel {
	n := memNetwork(t, server, client)
	tun := n.connect()
	t.Cleanup(func() {
		tun.Close(nil)
		n.gateway().Close(nil)
		tun.Wait()
		n.gateway().Wait()
		n.lanes.Wait()
	})
	return tun
}
