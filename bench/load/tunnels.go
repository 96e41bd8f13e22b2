package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"fairlead/bench/peers"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

const (
	tunnelDials   = 16      // that are under way at once: more would only queue for the gateway's handshakes
	tunnelMessage = 1 << 20 // bytes in a message, the link's own limit
)

// OpenTunnels is a TunnelOpener that speaks the link itself. A tunnel costs this process a WebSocket and two goroutines;
// a sidecar's pool, queue and listeners stay out of the measurement.
func OpenTunnels(ctx context.Context, access peers.Access, n int) (io.Closer, error) {
	d, err := newTunnelDialer(access)
	if err != nil {
		return nil, err
	}
	held := &heldTunnels{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(tunnelDials)
	for range n {
		group.Go(func() error {
			t, lane, err := d.open(ctx)
			if err == nil {
				held.add(t, lane)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		held.end()
		return nil, err
	}
	return held, nil
}

// tunnelDialer makes tunnels to one gateway.
type tunnelDialer struct {
	dialer   ws.Dialer
	endpoint string
	header   http.Header
}

func newTunnelDialer(access peers.Access) (*tunnelDialer, error) {
	base, err := url.Parse(access.URL)
	if err != nil {
		return nil, fmt.Errorf("the gateway's address: %w", err)
	}
	pem, err := os.ReadFile(access.CAFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", access.CAFile)
	}
	token, err := os.ReadFile(access.TokenFile)
	if err != nil {
		return nil, err
	}
	return &tunnelDialer{
		dialer:   ws.Dialer{TLS: &tls.Config{RootCAs: roots}, MaxMessage: tunnelMessage, Tune: ws.Tune},
		endpoint: base.JoinPath("v1/tunnel").String(),
		header:   http.Header{"Authorization": {"Bearer " + string(bytes.TrimSpace(token))}},
	}, nil
}

// open makes one tunnel, whose lane is to be run.
func (d *tunnelDialer) open(ctx context.Context) (*link.Tunnel, *link.Lane, error) {
	conn, err := d.dialer.Dial(ctx, d.endpoint, d.header, link.Subprotocol)
	if err != nil {
		return nil, nil, err
	}
	t, lane, err := link.Connect(ctx, conn, link.Config{MaxMessage: tunnelMessage})
	if err != nil {
		conn.Close(errs.CloseFrame(err))
		conn.Abort()
		conn.Wait()
		return nil, nil, err
	}
	return t, lane, nil
}

// heldTunnels are tunnels whose lanes run.
type heldTunnels struct {
	mu      sync.Mutex
	tunnels []*link.Tunnel // guarded by mu
	lanes   sync.WaitGroup
}

func (h *heldTunnels) add(t *link.Tunnel, lane *link.Lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tunnels = append(h.tunnels, t)
	h.lanes.Go(func() { _ = lane.Run() }) // Close tells which tunnels have lost theirs
}

// Close ends all tunnels and waits for them. It is an error if one was lost before: what was measured was then fewer.
func (h *heldTunnels) Close() error {
	err := h.lost()
	h.end()
	return err
}

func (h *heldTunnels) lost() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var why error
	lost := 0
	for _, t := range h.tunnels {
		if !t.Attached() {
			lost++
			why = t.Err() // of the last one; nil when only its WebSocket broke
		}
	}
	switch {
	case lost == 0:
		return nil
	case why == nil:
		return fmt.Errorf("%d of %d tunnels lost their connection while they were held", lost, len(h.tunnels))
	}
	return fmt.Errorf("%d of %d tunnels ended while they were held: %w", lost, len(h.tunnels), why)
}

func (h *heldTunnels) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tunnels {
		t.Close(nil)
	}
	h.lanes.Wait()
	for _, t := range h.tunnels {
		t.Wait()
	}
}
