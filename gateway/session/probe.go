package session

import (
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
)

// probe is the backend of link.ProbeRoute: it returns what it gets. It holds no bytes, since a write waits for the read
// that takes them.
type probe struct {
	*io.PipeReader
	w      *io.PipeWriter
	left   int64 // bytes; used by the one writer only
	closed chan struct{}
	close  func()      // closes it
	timer  *time.Timer // ends the stream: when its time is over, and at once when its bytes are
	why    chan error  // of one: what ends it sooner
}

// newProbe makes a probe that ends its stream by end, which must not block, when it has had its bytes or its time.
func newProbe(end func(error)) *probe {
	p := &probe{left: link.ProbeBytes, closed: make(chan struct{}), why: make(chan error, 1)}
	p.close = sync.OnceFunc(func() { close(p.closed) })
	p.PipeReader, p.w = io.Pipe()
	p.timer = time.AfterFunc(link.ProbeTime, func() {
		select {
		case err := <-p.why:
			end(err)
		default:
			end(errs.New(errs.ProbeOver, "a probe lasts %v at most", link.ProbeTime))
		}
	})
	return p
}

// Write returns b by way of Read. Bytes over the bound end the stream.
func (p *probe) Write(b []byte) (int, error) {
	if p.left -= int64(len(b)); p.left < 0 {
		select {
		case p.why <- errs.New(errs.ProbeOver, "a probe returns %d bytes at most", int64(link.ProbeBytes)):
		default:
		}
		if p.timer.Stop() { // else it is about to end, or has
			p.timer.Reset(0)
		}
		<-p.closed
		return 0, io.ErrClosedPipe
	}
	return p.w.Write(b)
}

// CloseWrite lets Read end after what was written.
func (p *probe) CloseWrite() error { return p.w.Close() }

// Close ends both directions. It may be called repeatedly, also at once.
func (p *probe) Close() error {
	p.timer.Stop()
	p.close()
	p.w.CloseWithError(io.ErrClosedPipe) // never fails
	return p.PipeReader.Close()
}

// probeMetrics count probes apart from other streams: what somebody tries says nothing about how well routes are served.
type probeMetrics struct {
	opened, refused, sent, received *metrics.Counter
}

func newProbeMetrics(set *metrics.Set) probeMetrics {
	return probeMetrics{
		opened:   set.NewCounter(`fairlead_gateway_probes_total{result="opened"}`),
		refused:  set.NewCounter(`fairlead_gateway_probes_total{result="refused"}`),
		sent:     set.NewCounter(`fairlead_gateway_probe_bytes_total{direction="sent"}`),
		received: set.NewCounter(`fairlead_gateway_probe_bytes_total{direction="received"}`),
	}
}

// probing says whether the stream is the gateway's own to answer.
func (a Ask) probing() bool { return a.Route == link.ProbeRoute }

// dialProbe is Backends.Dial for a probe.
func (s *Opened) dialProbe() relay.Conn { return newProbe(s.End) }

// probed counts and logs an open of a probe.
func (o *Opener) probed(s *Opened, err error) {
	if err != nil {
		o.probes.refused.Inc()
		o.log.Say(s.log, slog.LevelWarn, errs.CodeOf(err).String()+s.Who.Identity().Tenant, "probe refused", logging.Error(err)...)
		return
	}
	o.probes.opened.Inc()
	s.log.Info("probe opened")
}
