package ws

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// stagger is how long one address of a name is tried alone before the next is tried beside it (RFC 8305 section 5).
	stagger = 250 * time.Millisecond
	// maxAddresses bounds how many addresses of a name are tried.
	maxAddresses = 16
)

// dialAny resolves the name anew and connects to whichever of its addresses answers first. net.Dialer would try one after
// the other within a family, and give a dead one its share of the whole time.
func (d *Dialer) dialAny(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	resolver := d.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	ips, err := resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, 0, len(ips))
	for _, ip := range interleave(ips) {
		addrs = append(addrs, net.JoinHostPort(ip.Unmap().String(), port))
	}
	return dialFirst(ctx, network, addrs)
}

// interleave takes the families in turn, beginning with that of the first address, and keeps their order otherwise: a
// family that does not work costs one step, not one for each of its addresses.
func interleave(ips []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, ip := range ips {
		if ip.Unmap().Is4() == ips[0].Unmap().Is4() {
			first = append(first, ip)
		} else {
			second = append(second, ip)
		}
	}
	mixed := make([]netip.Addr, 0, len(ips))
	for i := range first {
		mixed = append(mixed, first[i])
		if i < len(second) {
			mixed = append(mixed, second[i])
		}
	}
	if len(second) > len(first) {
		mixed = append(mixed, second[len(first):]...)
	}
	return mixed[:min(len(mixed), maxAddresses)]
}

type dialled struct {
	conn net.Conn
	err  error
}

// dialFirst tries addresses beside each other, each when the one before has failed or taken longer than stagger. It returns
// when no attempt is under way any more.
func dialFirst(ctx context.Context, network string, addrs []string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan dialled)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var winner net.Conn
	var failures []error
	for next, running := 0, 0; ; {
		start := timer.C
		if next == len(addrs) || winner != nil || ctx.Err() != nil {
			if running == 0 {
				break
			}
			start = nil
		}
		select {
		case <-start:
			go func(addr string) {
				c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				results <- dialled{c, err}
			}(addrs[next])
			next++
			running++
			timer.Reset(stagger)
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				failures = append(failures, r.err)
				timer.Reset(0)
			case winner != nil:
				r.conn.Close()
			default:
				winner = r.conn
				cancel()
			}
		}
	}
	if winner != nil {
		return winner, nil
	}
	if len(failures) == 0 {
		return nil, context.Cause(ctx)
	}
	err := failures[0]
	for _, also := range failures[1:] {
		err = fmt.Errorf("%w; %w", err, also)
	}
	return nil, err
}
