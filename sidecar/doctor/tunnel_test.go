package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

// damaged changes the byte at an offset of what is returned.
type damaged struct {
	relay.Conn
	at, seen int64
}

func (d *damaged) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	if i := d.at - d.seen; i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	d.seen += int64(n)
	return n, err
}

// One byte that is changed on the way is found, with its offset.
//
// Verifies: R2.6
func TestOneChangedByteIsFound(t *testing.T) {
	p := newPatient(t)
	const at = 777_777
	p.gateway(&gateway{bytes: func(c relay.Conn) relay.Conn { return &damaged{Conn: c, at: at} }})
	r := p.examine()
	transfer := r.hop(HopTransfer)
	assert.Equal(t, Fail, transfer.Status)
	assert.Equal(t, int64(at), transfer.Data["first_difference"])
	assert.NotEqual(t, transfer.Data["sha256_sent"], transfer.Data["sha256_returned"])
	assert.Contains(t, r.Conclusion, "changes or holds back bytes")
	assert.Equal(t, HopTransfer, r.Culprit)
	assert.Equal(t, 1, r.Exit)
}

// A probe that ends before all has come back is a failure with what came.
func TestBytesThatDoNotComeBack(t *testing.T) {
	p := newPatient(t)
	p.gateway(&gateway{bytes: func(c relay.Conn) relay.Conn { return &cutShort{Conn: c, left: 100_000} }})
	r := p.examine()
	transfer := r.hop(HopTransfer)
	assert.Equal(t, Fail, transfer.Status)
	assert.Less(t, transfer.Data["returned"].(int64), int64(transferSize))
}

// cutShort breaks after some bytes.
type cutShort struct {
	relay.Conn
	left int
}

func (c *cutShort) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), c.left+1)])
	if c.left -= n; c.left < 0 {
		c.Conn.Close()
		return 0, errs.New(errs.BackendBroken, "cut short")
	}
	return n, err
}

// Gateways without the probe are told apart from a way that does not work.
func TestOlderGateways(t *testing.T) {
	for _, code := range []errs.Code{errs.RouteUnknown, errs.RouteForbidden} {
		p := newPatient(t)
		p.gateway(&gateway{old: true, open: func(route string) error { return errs.New(code, "no route %s for you", route) }})
		r := p.examine()
		assert.True(t, r.OK, r.statuses())
		assert.Equal(t, OK, r.hop(HopTunnel).Status)
		assert.Contains(t, r.hop(HopRoundTrip).Detail, "older than the probe")
		for _, hop := range []string{HopTransfer, HopThroughput} {
			assert.Equal(t, Skipped, r.hop(hop).Status)
			assert.Contains(t, r.hop(hop).Detail, "not tested: the gateway is older")
		}
	}
}

// One tunnel too many says nothing against the way: plain streams go on.
func TestATunnelTooManyIsNoFailure(t *testing.T) {
	p := newPatient(t)
	g := p.gateway(&gateway{turn: errs.New(errs.TunnelLimit, "tenant dev has 3 tunnels, of 3 that its tier allows")})
	p.listener("nowhere", "127.0.0.1:1")
	r := p.examine()
	tunnel := r.hop(HopTunnel)
	assert.Equal(t, Warn, tunnel.Status)
	assert.Equal(t, "FL-S409", tunnel.Code)
	assert.Contains(t, tunnel.Detail, "going on with plain streams")
	assert.Equal(t, OK, r.hop(HopRoundTrip).Status)
	assert.Equal(t, OK, r.hop(HopTransfer).Status)
	assert.Equal(t, r.hop(HopTransfer).Data["sha256_sent"], r.hop(HopTransfer).Data["sha256_returned"])
	assert.Equal(t, "unknown", r.hop(HopPolicy).Data["decision"], "refusals of plain streams are understood too")
	assert.Equal(t, []string{link.ProbeRoute, link.ProbeRoute, "nowhere"}, g.asked)
}

// Whoever is at a limit is told so, and not that something is broken.
func TestLimitsAreNoFailures(t *testing.T) {
	for _, code := range []errs.Code{errs.OpenRate, errs.StreamLimit, errs.Overloaded, errs.MemoryLimit} {
		p := newPatient(t)
		p.gateway(&gateway{open: func(string) error { return errs.New(code, "enough for now") }})
		p.listener("git", "127.0.0.1:1")
		r := p.examine()
		assert.True(t, r.OK, r.statuses())
		for _, hop := range []string{HopRoundTrip, HopTransfer, HopPolicy} {
			res := r.hop(hop)
			assert.Equal(t, Warn, res.Status, hop)
			assert.Equal(t, code.String(), res.Code)
			assert.Contains(t, res.Detail, "not tested now: enough for now")
		}
		assert.Equal(t, Skipped, r.hop(HopBackend).Status)
	}
}

// Routes are told apart by what the gateway says of each, and one that fails does not keep others from being tried.
//
// Verifies: R2.5, R2.6
func TestRoutesAreToldApart(t *testing.T) {
	codes := map[string]errs.Code{"forbidden": errs.RouteForbidden, "unknown": errs.RouteUnknown, "down": errs.BackendUnreachable, "slow": errs.BackendTimeout,
		"key": errs.HostKeyRefused, "login": errs.BackendAuth, "handshake": errs.SSHHandshake, "target": errs.TargetRefused, "circuit": errs.CircuitOpen}
	phases := map[string]string{"down": "connect", "slow": "connect", "key": "host key", "login": "login", "handshake": "handshake", "target": "target", "circuit": "not tried by the gateway"}
	p := newPatient(t)
	for route := range codes {
		p.listener(route, "127.0.0.1:1")
		p.listener(route, "127.0.0.1:2") // tried once
	}
	p.gateway(&gateway{open: func(route string) error {
		if code, ok := codes[route]; ok {
			return errs.New(code, "said of %s", route)
		}
		return nil
	}})
	r := p.examine()
	require.Len(t, r.all(HopPolicy), len(codes))
	for _, res := range r.all(HopPolicy) {
		switch res.Target {
		case "forbidden", "unknown":
			assert.Equal(t, Fail, res.Status)
			assert.Equal(t, codes[res.Target].String(), res.Code)
			assert.Equal(t, res.Target, res.Data["decision"])
		default:
			assert.Equal(t, OK, res.Status, res.Target)
			assert.Equal(t, "allowed", res.Data["decision"])
		}
	}
	for _, res := range r.all(HopBackend) {
		phase, failed := phases[res.Target]
		if !failed {
			assert.Equal(t, Skipped, res.Status)
			continue
		}
		assert.Equal(t, Fail, res.Status, res.Target)
		assert.Equal(t, phase, res.Data["phase"])
		assert.Contains(t, res.Detail, "between the gateway and the backend ("+phase+")")
		assert.Contains(t, res.Detail, "said of "+res.Target)
	}

	p.cfg.Routes = []string{"forbidden"}
	r = p.examine()
	assert.Equal(t, errs.ExitAuthentication, r.Exit)
	assert.Contains(t, r.Conclusion, "the gateway's policy: it does not give route forbidden")
}
