package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports of every program at its own address, as in pods.
const (
	gatewayPort = 9443
	peerPort    = 9444
	adminPort   = 9090
	routePort   = 2200 // of a sidecar's first listener
)

// network is a part of 127.0.0.0/8 in which each program has an address of its own, which stays the same over a restart.
type network struct{ a, b byte }

// newNetwork finds one that nobody uses.
func newNetwork() (n network, err error) {
	const tries, first = 20, 64 // addresses near 127.0.0.1 are used by other programs
	var failed error
	for range tries {
		n = network{byte(first + rand.IntN(256-first)), byte(rand.IntN(256))}
		l, err := net.Listen("tcp", at(n.replica(0), gatewayPort))
		if err == nil {
			return n, l.Close()
		}
		failed = err
	}
	return n, errors.Join(errors.New("found no free addresses on the loopback interface"), failed)
}

func (n network) replica(i int) string { return fmt.Sprintf("127.%d.%d.%d", n.a, n.b, 10+i) }

func (n network) sidecar(i int) string { return fmt.Sprintf("127.%d.%d.%d", n.a, n.b, 110+i) }

func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
