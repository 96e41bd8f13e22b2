package audit

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Source is one file of a log, or a stream of several one after the other.
type Source struct {
	Name   string // for people
	Number uint64 // in its name, for older files; 0: none, or the current file
	Stream bool   // several files in one, which need not begin at a file's first line
	Open   func() (io.ReadCloser, error)
}

// raw is one line as it is in a file.
type raw struct {
	source *Source
	number int    // in its source, from 1
	first  bool   // of its source
	bytes  []byte // at most maxLine+1 of them
	length int64  // all of them, without the newline
	hash   hash   // of all of them
	whole  bool   // a newline ends it
	line   *Line  // nil: it is no line of a log
	err    error  // why not
}

// seq is the sequence number that the line claims; 0: none.
func (r *raw) seq() uint64 {
	if r == nil || r.line == nil {
		return 0
	}
	return r.line.Seq
}

// follows reports whether the line claims to be number seq, behind a line with that hash.
func (r *raw) follows(seq uint64, before hash) bool {
	return r.seq() == seq && r.line.Prev == hexOf(before)
}

// kind is the kind of a line that the log wrote about itself; "" for events and for what is no line.
func (r *raw) kind() string {
	if r == nil {
		return ""
	}
	return r.line.kind()
}

func hexOf(h hash) string { return hex.EncodeToString(h[:]) }

// reader reads the lines of all sources, one after the other, in constant memory.
type reader struct {
	sources []Source
	at      int // index of the open source
	open    io.ReadCloser
	buf     *bufio.Reader
	number  int
}

func newReader(sources []Source) *reader {
	return &reader{sources: sources, buf: bufio.NewReaderSize(nil, 64<<10)}
}

func (r *reader) close() {
	if r.open != nil {
		r.open.Close()
		r.open = nil
	}
}

// next reads one line; nil at the end of the last source.
func (r *reader) next() (*raw, error) {
	for r.at < len(r.sources) {
		s := &r.sources[r.at]
		if r.open == nil {
			f, err := s.Open()
			if err != nil {
				return nil, err
			}
			r.open, r.number = f, 0
			r.buf.Reset(f)
		}
		line, err := r.read()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		if line != nil {
			r.number++
			line.source, line.number, line.first = s, r.number, r.number == 1
			return line, nil
		}
		r.close()
		r.at++
	}
	return nil, nil
}

// read reads a line of the open source; nil at its end.
func (r *reader) read() (*raw, error) {
	line := &raw{bytes: make([]byte, 0, 1024)}
	h := sha256.New()
	for {
		part, err := r.buf.ReadSlice('\n')
		if n := len(part); err == nil {
			part, line.whole = part[:n-1], true
		}
		h.Write(part)
		line.length += int64(len(part))
		line.bytes = append(line.bytes, part[:min(len(part), maxLine+1-len(line.bytes))]...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && line.length == 0:
			return nil, nil
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err
		}
		h.Sum(line.hash[:0])
		line.line, line.err = parseLine(line.bytes)
		return line, nil
	}
}

// place names a line for people.
func (r *raw) place() string {
	return fmt.Sprintf("%s line %d", filepath.Base(r.source.Name), r.number)
}
