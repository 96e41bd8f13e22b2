package link

import "io"

// Conn carries the messages of one lane; shared/ws implements it over WebSocket. One goroutine reads and one writes at a
// time; Close, Abort and Received may be called from any.
type Conn interface {
	// NextReader blocks for the next message and returns a reader of it that ends with io.EOF. A close frame of the peer,
	// a message over the agreed size and a broken connection are errors that carry a code of package errs.
	NextReader() (io.Reader, error)

	// Write appends one message, head and payload together, to the write buffer. It writes to the network when the buffer
	// is full. It keeps neither slice.
	Write(head, payload []byte) error

	// Flush writes the write buffer to the network.
	Flush() error

	// Buffered is the number of bytes in the write buffer.
	Buffered() int

	// Close sends a close frame, within a second, and lets reads go on for a second. A write that is blocked fails.
	Close(code int, reason string)

	// Drain discards what still comes, until the peer closes or the time that Close set is up, so that the close frame is
	// not overtaken by a reset of the connection. Only the reading goroutine may call it, as its last read.
	Drain()

	// Abort ends the connection at once. Reads and writes fail. It may be called more than once.
	Abort()

	// Wait returns when nothing runs on the connection any more, after Abort.
	Wait()

	// Received counts the bytes that came from the network, also within a message that is not complete: a sign of life.
	Received() uint64
}
