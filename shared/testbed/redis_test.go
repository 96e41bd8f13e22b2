package testbed_test

import (
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed"
)

func TestRedisOnATCPPort(t *testing.T) {
	r := testbed.NewRedis(t)
	assert.Equal(t, "tcp", r.Network())
	require.NoError(t, r.Ping())
	require.Error(t, r.Start(t.Context()), "it runs already")

	require.NoError(t, r.Pause())
	var timeout net.Error
	require.ErrorAs(t, r.Ping(), &timeout)
	assert.True(t, timeout.Timeout())
	require.NoError(t, r.Continue())
	require.NoError(t, r.Ping())

	r.Kill()
	require.Error(t, r.Ping())
	require.Error(t, r.Pause())
	require.NoError(t, r.Start(t.Context()))
	require.NoError(t, r.Ping())
	r.Stop()
	r.Stop()
	require.Error(t, r.Ping())
}

func TestRedisOnAUnixSocketWithAPassword(t *testing.T) {
	dir, err := os.MkdirTemp("", "fairlead-") //nolint:usetesting // a path made of the test's name is too long for a socket
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	r, err := testbed.StartRedis(t.Context(), testbed.RedisConfig{Dir: dir, Unix: true, Password: "secret"})
	require.NoError(t, err)
	defer r.Stop()
	assert.Equal(t, "unix", r.Network())
	require.NoError(t, r.Ping())

	conn, err := net.Dial("unix", r.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("PING\r\n"))
	require.NoError(t, err)
	answer := make([]byte, 7)
	_, err = conn.Read(answer)
	require.NoError(t, err)
	assert.Equal(t, "-NOAUTH", string(answer))
}
