package peers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// loopback is the only address that anything here listens on.
const loopback = "127.0.0.1"

// pickPort returns a loopback address that nobody listens on. Programs that cannot listen on port 0, or cannot tell
// which port they got, need one. It is taken from below the range of outgoing connections (net.ipv4.ip_local_port_range
// starts at 32768), so that of all the connections of a benchmark none takes it before the program does.
func pickPort() (string, error) {
	const first, last, tries = 12000, 32000, 100
	var failed error
	for range tries {
		address := fmt.Sprintf("%s:%d", loopback, first+rand.IntN(last-first))
		l, err := net.Listen("tcp", address)
		if err == nil {
			return address, l.Close()
		}
		failed = err
	}
	return "", errors.Join(errors.New("found no free port on the loopback interface"), failed)
}

// pickPorts is pickPort for several addresses at once.
func pickPorts(addresses ...*string) error {
	taken := make(map[string]bool, len(addresses))
	for _, a := range addresses {
		for *a = ""; *a == "" || taken[*a]; {
			picked, err := pickPort()
			if err != nil {
				return err
			}
			*a = picked
		}
		taken[*a] = true
	}
	return nil
}
