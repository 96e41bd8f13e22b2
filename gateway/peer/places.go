package peer

import (
	"net"
	"slices"
	"time"
)

// source is an address that strangers come from.
type source struct {
	strangers []*stranger // that have places, first come first
	waiting   []*stranger // first come first
}

// host is the address that a connection comes from, without the port.
func host(c net.Conn) string {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return ""
}

// next gives places to those that wait, as long as there are any. Called with mu held.
func (g *gate) next() {
	for g.waiting > 0 && g.taken < places {
		var first *source
		for _, from := range g.sources {
			if len(from.waiting) > 0 && len(from.strangers) < placesEach && (first == nil || len(from.strangers) < len(first.strangers)) {
				first = from
			}
		}
		if first == nil {
			break
		}
		s := first.waiting[0]
		first.waiting = slices.Delete(first.waiting, 0, 1)
		g.waiting--
		g.taken++
		s.since = time.Now()
		first.strangers = append(first.strangers, s)
		g.running.Go(func() { g.meet(s) })
	}
	if g.waiting > 0 {
		select {
		case g.crowded <- struct{}{}:
		default:
		}
	}
}

// sweep makes room while somebody waits, until the gate is closed.
func (g *gate) sweep() {
	for {
		select {
		case <-g.closed:
			return
		case <-g.crowded:
		}
		for g.makeRoom() {
			if !g.pause() {
				return
			}
		}
	}
}

// makeRoom drops those that have had their time: at addresses that have all that they may have, and where most come from. It says
// whether anybody waits.
func (g *gate) makeRoom() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	var most *source
	for _, from := range g.sources {
		if most == nil || len(from.strangers) > len(most.strangers) {
			most = from
		}
		if len(from.waiting) > 0 && len(from.strangers) >= placesEach {
			from.drop(len(from.waiting))
		}
	}
	if g.waiting > 0 && g.taken >= places {
		most.drop(g.waiting)
	}
	return g.waiting > 0
}

// drop ends up to n of those that have been there longest, but for those that came a moment ago. They leave by themselves.
func (s *source) drop(n int) {
	for _, first := range s.strangers[:min(len(s.strangers), n, dropAtOnce)] {
		if time.Since(first.since) >= patience {
			_ = first.conn.Close()
		}
	}
}

// dropAtOnce is how many lose their places in one look.
const dropAtOnce = 16
