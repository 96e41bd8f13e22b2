package audit

import (
	"bytes"
	"io"
	"os"
	"time"
)

const (
	settleTime = time.Second
	settlePoll = 20 * time.Millisecond
)

// settled reads a file that a gateway may be writing to: as far as it went at the beginning, and to the end of the line
// there, for which it waits a moment. So a reader comes to an end, and a line that is just being written is not torn.
type settled struct {
	file   *os.File // not closed
	offset int64
	size   int64 // read up to here
	last   byte
	wait   bool
}

// newSettled reads f; wait says whether somebody may be writing to it.
func newSettled(f *os.File, wait bool) (io.ReadCloser, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &settled{file: f, size: info.Size(), last: '\n', wait: wait}, nil
}

// Read implements io.Reader.
func (s *settled) Read(p []byte) (int, error) {
	if s.offset == s.size && s.last != '\n' && s.wait {
		s.extend()
	}
	p = p[:min(int64(len(p)), s.size-s.offset)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	n, err := s.file.ReadAt(p, s.offset)
	if n > 0 {
		s.offset += int64(n)
		s.last = p[n-1]
		return n, nil
	}
	return 0, err
}

// extend moves the size to the end of the line, if it comes in time.
func (s *settled) extend() {
	rest := make([]byte, maxLine)
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(settlePoll) {
		n, _ := s.file.ReadAt(rest, s.offset)
		if i := bytes.IndexByte(rest[:n], '\n'); i >= 0 {
			s.size = s.offset + int64(i) + 1
			return
		}
	}
	s.last = '\n' // it does not: what there is of the line was read
}

// Close does nothing: the file belongs to whoever opened it.
func (s *settled) Close() error { return nil }
