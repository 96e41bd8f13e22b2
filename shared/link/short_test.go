package link

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A message that ends inside the header breaks the rules. A connection that ends there (TLS says so with the same error, when
// it comes inside a record) is a lost lane, which the tunnel survives.
//
// Verifies: R1.7
func TestAnEndInsideTheHeader(t *testing.T) {
	_, _, err := readMessage(bytes.NewReader(make([]byte, headerSize-1)), nil)
	require.Equal(t, errs.ProtocolViolation, errs.CodeOf(err))
	_, _, err = readMessage(bytes.NewReader(nil), nil)
	require.Equal(t, errs.ProtocolViolation, errs.CodeOf(err))
	for n := range headerSize {
		broken := iotest.ErrReader(errs.Wrap(errs.LaneLost, io.ErrUnexpectedEOF, "reading from the peer"))
		_, _, err = readMessage(io.MultiReader(bytes.NewReader(make([]byte, n)), broken), nil)
		require.Equal(t, errs.LaneLost, errs.CodeOf(err), "after %d bytes", n)
	}
}
