package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"fairlead/shared/errs"
)

// alert is the operation of an error that the other end's TLS has sent.
const alert = "remote error"

// network says whether an error of a TLS connection is of the network below: nobody has refused anybody.
func network(err error) bool {
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return true
	case errors.As(err, &op):
		return op.Op != alert && op.Op != "local error" // those are TLS's
	}
	return false
}

// refusal gives an error of TLS its code.
func refusal(err error, format string, args ...any) error {
	var coded *errs.Error
	if errors.As(err, &coded) {
		err = errors.New(coded.Text())
	}
	return errs.Wrap(errs.PeerRefused, err, format, args...)
}
