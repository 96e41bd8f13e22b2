package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// stream is a stream to a route.
type stream interface {
	io.ReadWriter
	abort() // ends it at once, reads and writes included; may be called repeatedly
}

// carrier opens streams to routes: in a tunnel of its own, or as plain streams where there may be no further tunnel.
type carrier struct {
	p      *path
	tunnel *link.Tunnel // nil: plain streams
	conn   *ws.Conn
	ran    chan struct{} // closed when the lane has ended
}

// carrier adds how the handshake of the link went, and returns how streams are opened; nil: not at all.
func (p *path) carrier() *carrier {
	c := &carrier{p: p}
	works := p.r.probe(HopTunnel, p.target, func(ctx context.Context, res *Result) error {
		t, lane, err := link.Connect(ctx, p.attempt.conn, p.r.parts.Link)
		if err != nil {
			abandon(p.attempt.conn, err)
			return c.plain(res, err)
		}
		c.tunnel, c.conn, c.ran = t, p.attempt.conn, make(chan struct{})
		go func() {
			defer close(c.ran)
			_ = lane.Run() // what it carries tells
		}()
		describeTunnel(res, t)
		return nil
	})
	if !works {
		c.close()
		return nil
	}
	return c
}

// plain goes on without a tunnel if there are enough of them already: that says nothing against the way.
func (c *carrier) plain(res *Result, err error) error {
	if !errors.Is(err, errs.TunnelLimit) {
		return err
	}
	e := errs.From(err)
	res.code, res.Code = e.Code, e.Code.String()
	res.warn("Nothing, if a sidecar runs beside: the doctor's own tunnel was one too many.", "%s; going on with plain streams", e.Text())
	return nil
}

func describeTunnel(res *Result, t *link.Tunnel) {
	told := t.Told()
	res.Data["version"], res.Data["tunnel"], res.Data["replica"] = told.Version, t.Name(), told.Replica
	res.Data["max_message"], res.Data["window"] = told.MaxMessage, told.Window
	res.Data["heartbeat_s"], res.Data["resume_ttl_s"], res.Data["idle_s"] = told.Heartbeat.Seconds(), told.ResumeTTL.Seconds(), told.Idle.Seconds()
	res.say("link version %d, tunnel %s at %s; messages up to %s, windows from %s, heartbeat %s, held for %s", told.Version, t.Name(),
		orNone(told.Replica), size(int64(told.MaxMessage)), size(int64(told.Window)), told.Heartbeat, told.ResumeTTL)
}

// farewell is how long the gateway may take to acknowledge the end of the tunnel.
const farewell = time.Second

// close ends the tunnel and waits for it.
func (c *carrier) close() {
	if c.tunnel == nil {
		return
	}
	c.tunnel.Close(nil)
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-c.ran:
	case <-timer.C:
	case <-c.p.r.ctx.Done():
	}
	c.conn.Abort()
	<-c.ran
	c.tunnel.Wait()
	c.tunnel = nil
}

// open opens a stream; ctx bounds the open only.
func (c *carrier) open(ctx context.Context, route string, priority link.Priority) (stream, error) {
	if c.tunnel == nil {
		d := c.p.r.dialer()
		conn, err := d.Dial(ctx, c.p.url("v1/stream", route), c.p.header(), "")
		if err != nil {
			return nil, err
		}
		return &plainStream{ws.NewBytes(conn), conn}, nil
	}
	st, err := c.tunnel.Open(link.OpenRequest{Route: route, Priority: priority, Peer: "doctor", Trace: link.NewTrace()})
	if err != nil {
		return nil, err
	}
	if err := st.WaitOpened(ctx); err != nil {
		if ctx.Err() != nil {
			err = errs.Wrap(errs.OpenTimeout, err, "route %s was not opened in time", route)
		}
		st.Reset(errs.New(errs.Canceled, "the doctor gave up"))
		return nil, err
	}
	return tunnelStream{st}, nil
}

type tunnelStream struct{ *link.Stream }

func (s tunnelStream) abort() { s.Reset(errs.New(errs.Canceled, "the doctor has seen enough")) }

// plainStream is a stream without a tunnel.
type plainStream struct {
	*ws.Bytes
	conn *ws.Conn
}

func (s *plainStream) abort() {
	s.conn.Close(errs.CloseFrame(nil))
	s.conn.Abort()
	s.conn.Wait()
}

// size is a number of bytes for people.
func size(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.bytes {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
