package backend

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Verifies: R8.2
func TestConnectionsEndWithADisconnectMessage(t *testing.T) {
	d := startSSHD(t)
	s, _ := newSet(t, d.backend(t), echo(t))
	c := dial(t, s, "a")
	pingPong(t, c)
	require.NoError(t, s.Close(t.Context()))
	require.Eventually(t, func() bool {
		return strings.Contains(d.log.String(), ":11: ") && strings.Contains(d.log.String(), "Received disconnect from 127.0.0.1")
	}, 10*time.Second, 10*time.Millisecond, "sshd was not told: %s", d.log)
}
