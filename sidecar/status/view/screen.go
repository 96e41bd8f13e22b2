package view

import (
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"fairlead/shared/errs"
)

// What is switched on for the time of the view, and off again after it: the alternate screen, no cursor, no wrapping.
const (
	enter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
	leave = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// Size when the terminal does not tell.
const (
	usualColumns = 80
	usualRows    = 24
)

// screen is a terminal in the state that the view needs.
type screen struct {
	in, out *os.File
	before  *term.State // of in; nil: in is no terminal
	resized chan os.Signal
}

// openScreen changes the terminal; close must be called whatever happens.
func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{in: in, out: out, resized: make(chan os.Signal, 1)}
	if term.IsTerminal(int(in.Fd())) {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "reading keys from the terminal")
		}
		s.before = before
	}
	signal.Notify(s.resized, syscall.SIGWINCH)
	if _, err := out.WriteString(enter); err != nil {
		s.close()
		return nil, errs.Wrap(errs.Internal, err, "writing to the terminal")
	}
	return s, nil
}

// close gives the terminal back as it was.
func (s *screen) close() {
	signal.Stop(s.resized)
	_, _ = s.out.WriteString(leave) // a terminal that is gone needs nothing
	if s.before != nil {
		_ = term.Restore(int(s.in.Fd()), s.before)
	}
}

func (s *screen) size() (columns, rows int) {
	columns, rows, err := term.GetSize(int(s.out.Fd()))
	if err != nil || columns < 1 || rows < 1 {
		return usualColumns, usualRows
	}
	return columns, rows
}

// draw writes a frame over the one before, in one piece. A row is erased before it is written, not after: a cursor behind
// the last column stands on it, and would erase it.
func (s *screen) draw(lines []Line, color bool) error {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if i == len(lines)-1 {
			b.WriteString("\x1b[J") // this row and all below it
		} else {
			b.WriteString("\x1b[K")
		}
		if color {
			b.WriteString(l.ANSI())
		} else {
			b.WriteString(l.String())
		}
	}
	if _, err := s.out.WriteString(b.String()); err != nil {
		return errs.Wrap(errs.Internal, err, "writing to the terminal")
	}
	return nil
}

// keyPoll is how long, in milliseconds, a look for keys waits; so long it takes at most until the reader has ended.
const keyPoll = 100

// quitKey waits for q, Ctrl-C or Ctrl-D, or for the terminal's end. It returns false when done is closed.
func (s *screen) quitKey(done <-chan struct{}) bool {
	if s.before == nil {
		<-done
		return false
	}
	keys := make([]byte, 64)
	fds := []unix.PollFd{{Fd: int32(s.in.Fd()), Events: unix.POLLIN}}
	for {
		select {
		case <-done:
			return false
		default:
		}
		if n, err := unix.Poll(fds, keyPoll); n == 0 || err != nil { // an interrupted look is made again
			continue
		}
		n, err := s.in.Read(keys)
		if err != nil || strings.ContainsAny(string(keys[:n]), "qQ\x03\x04") {
			return true
		}
	}
}
