package ws

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsentLimit is how much the kernel takes of what it has not sent yet, in bytes. What waits in the kernel is where no
// scheduler can reach it.
const unsentLimit = 128 << 10

// Tune sets a lane's TCP connection up. A kernel that does not know the option has larger queues, nothing worse.
func Tune(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
	})
}
