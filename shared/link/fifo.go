package link

import "slices"

// segments is a run of payload without gaps.
type segments struct{ fifo[segment] }

// tack appends p to the last buffer if all of it has space there. A lane may be writing the front of that buffer; what is
// appended lies behind it.
func (q *segments) tack(p []byte) bool {
	if q.len() == 0 {
		return false
	}
	last := q.at(q.len() - 1)
	if len(last.buf.b)-int(last.end) < len(p) {
		return false
	}
	last.end += int32(copy(last.buf.b[last.end:], p))
	return true
}

// fifo is a queue in one slice; popped places are reused, so a steady queue allocates nothing.
type fifo[T any] struct {
	items []T
	head  int
}

func (q *fifo[T]) len() int { return len(q.items) - q.head }

func (q *fifo[T]) at(i int) *T { return &q.items[q.head+i] }

func (q *fifo[T]) push(v T) {
	if 2*q.head >= len(q.items) && q.head > 0 && len(q.items) == cap(q.items) { // no more is moved than was popped
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *fifo[T]) pushFront(v T) {
	if q.head > 0 {
		q.head--
		q.items[q.head] = v
		return
	}
	q.items = slices.Insert(q.items, 0, v)
}

func (q *fifo[T]) pop() T {
	var zero T
	v := q.items[q.head]
	q.items[q.head] = zero
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return v
}

// segment is a run of payload at buf.b[start:end]; off is the absolute position of its first byte.
type segment struct {
	buf        *Buffer
	off        uint64
	start, end int32
}

func (s *segment) bytes() []byte     { return s.buf.b[s.start:s.end] }
func (s *segment) endOffset() uint64 { return s.off + uint64(s.end-s.start) }
