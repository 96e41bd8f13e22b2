package relay

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// otherEndClosed says whether the socket at the other end of c belongs to no process any more. The kernel is asked for it
// (sock_diag(7)), so this can only be told when the other end is on this machine and in this network namespace, as an
// application in the same pod is; else, and when in doubt, it is false.
func otherEndClosed(c net.Conn) bool {
	theirs, ours := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	if !theirs.IsValid() || !ours.IsValid() {
		return false
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}) // it answers at once
	if err := unix.Sendto(fd, diagRequest(theirs, ours), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false
	}
	answer := make([]byte, 1024)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return false
	}
	inode, ok := diagInode(answer[:n])
	return ok && inode == 0
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Sizes and offsets of linux/netlink.h and linux/inet_diag.h.
const (
	netlinkHeader  = 16
	diagRequestLen = 8 + 48 // struct inet_diag_req_v2, with its struct inet_diag_sockid
	diagInodeAt    = netlinkHeader + 4 + 48 + 16
	byFamily       = 20 // SOCK_DIAG_BY_FAMILY
)

// diagRequest asks for the one socket with these addresses.
func diagRequest(src, dst netip.AddrPort) []byte {
	b := make([]byte, netlinkHeader+diagRequestLen)
	ne := binary.NativeEndian
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], byFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	r := b[netlinkHeader:]
	r[0], r[1] = unix.AF_INET, unix.IPPROTO_TCP
	if src.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	ne.PutUint32(r[4:], ^uint32(0)) // in any state
	id := r[8:]
	binary.BigEndian.PutUint16(id, src.Port())
	binary.BigEndian.PutUint16(id[2:], dst.Port())
	copy(id[4:20], src.Addr().AsSlice())
	copy(id[20:36], dst.Addr().AsSlice())
	for i := 40; i < 48; i++ { // INET_DIAG_NOCOOKIE: whichever it is
		id[i] = 0xff
	}
	return b
}

// diagInode reads the inode of the socket from the answer: 0 when no process has it.
func diagInode(b []byte) (inode uint32, ok bool) {
	if len(b) < diagInodeAt+4 || binary.NativeEndian.Uint16(b[4:]) != byFamily {
		return 0, false
	}
	return binary.NativeEndian.Uint32(b[diagInodeAt:]), true
}
