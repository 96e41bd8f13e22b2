package server_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// A client that takes nothing keeps what was meant to end no longer than one that listens.
//
// Verifies: R4.5
func TestAStreamIsEndedWhoseClientTakesNothing(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	defer conn.Abort()
	stuck := make(chan struct{})
	go func() { // until the client's and our buffers are full
		defer close(stuck)
		for {
			_ = backend.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := backend.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}()
	<-stuck
	list := f.sessions.Opener().Streams()
	require.Len(t, list, 1)
	require.True(t, f.sessions.Opener().EndStream("", list[0].Stream, errs.New(errs.TokenRevoked, "just now")))
	assert.Eventually(t, func() bool { return len(f.sessions.Opener().Streams()) == 0 && f.slots.none() }, 12*time.Second, 10*time.Millisecond)
	assert.Eventually(t, func() bool { return f.metric("fairlead_gateway_plain_streams 0") }, time.Second, time.Millisecond)
}
