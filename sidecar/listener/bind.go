package listener

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"fairlead/shared/errs"
)

// socket is a listening socket, with its file if it has one.
type socket struct {
	net.Listener
	path string
	file os.FileInfo // of path, as it was bound
}

// bind listens on host:port, or unix:/path.
func bind(listen string) (*socket, error) {
	path, ok := strings.CutPrefix(listen, "unix:")
	if !ok {
		l, err := net.Listen("tcp", listen)
		return &socket{Listener: l}, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // whose file it is then must be looked at
	file, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &socket{l, path, file}, nil
}

// removeStale removes a socket that nobody listens on any more. Anything else at the path stays.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errs.New(errs.ListenFailed, "%s exists and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return errs.New(errs.ListenFailed, "another process listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// Close frees the address. A file that somebody else has put at the path meanwhile is theirs and stays.
func (s *socket) Close() error {
	if s.path != "" {
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(s.file, now) {
			_ = os.Remove(s.path)
		}
	}
	return s.Listener.Close()
}

// interrupt ends Accept, until it is called with false.
func (s *socket) interrupt(yes bool) {
	var at time.Time
	if yes {
		at = time.Unix(1, 0)
	}
	_ = s.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(at) // fails only on a closed socket
}

func (s *socket) name() string {
	if s.path != "" {
		return "unix:" + s.path
	}
	return s.Addr().String()
}
