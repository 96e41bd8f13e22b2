package peer

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
)

// Sizes of what is read at once, in bytes. An idle direction waits with the small one. A buffer of the large size is borrowed as
// long as reads bring much: from TLS that is up to a record, 16 KiB, from a socket all there is.
const (
	little = 2 << 10
	much   = 64 << 10
	enough = 4 << 10 // of a read, for the next one to be large too
)

var buffers = sync.Pool{New: func() any { return new([much]byte) }} // a cache, not state

// flow is one direction of a relay.
type flow struct {
	read, written atomic.Uint64
	total         *metrics.Counter
	small         [little]byte
}

// pump copies until src ends, and tells apart whether reading or writing failed.
func (f *flow) pump(dst io.Writer, src io.Reader) (readErr, writeErr error) {
	for {
		n, readErr, writeErr := f.step(dst, src, f.small[:])
		if n == little && readErr == nil && writeErr == nil {
			readErr, writeErr = f.bulk(dst, src)
		}
		switch {
		case writeErr != nil:
			return nil, writeErr
		case readErr == io.EOF:
			return nil, nil
		case readErr != nil:
			return readErr, nil
		}
	}
}

// bulk copies while there is much.
func (f *flow) bulk(dst io.Writer, src io.Reader) (readErr, writeErr error) {
	buf := buffers.Get().(*[much]byte)
	defer buffers.Put(buf)
	for {
		n, readErr, writeErr := f.step(dst, src, buf[:])
		if n < enough || readErr != nil || writeErr != nil {
			return readErr, writeErr
		}
	}
}

// step reads once, and writes what came.
func (f *flow) step(dst io.Writer, src io.Reader, buf []byte) (n int, readErr, writeErr error) {
	n, readErr = src.Read(buf)
	if n > 0 {
		f.read.Add(uint64(n))
		var put int
		put, writeErr = dst.Write(buf[:n])
		f.written.Add(uint64(put))
		f.total.Add(put)
	}
	return n, readErr, writeErr
}
