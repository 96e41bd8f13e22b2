//go:build !linux

package ws

import "net"

// Tune does nothing on systems without TCP_NOTSENT_LOWAT.
func Tune(net.Conn) {}
