package app

import (
	"bufio"
	"fmt"
	"net/http"
	"testing"
	"time"

	"crypto/tls"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Verifies: R4.3
func TestWhoGetsAPlainStreamIsToldHowManyMoreThereAre(t *testing.T) {
	s := newSite(t)
	a, _ := s.run()
	token, err := s.issuer.Valid("dev", time.Hour)
	require.NoError(t, err)
	c, err := tls.Dial("tcp", a.Addr().String(), s.ca.ClientTLS())
	require.NoError(t, err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "GET /v1/stream/git HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", token)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	assert.Contains(t, fmt.Sprint(resp.Header), "99", "of a hundred")
}
