package e2e

import (
	"bufio"
	"crypto/sha256"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// modes are the ways to reach a TCP server: directly as a backend, or behind OpenSSH's server.
func modes() map[string]func(name, addr string) option {
	return map[string]func(name, addr string) option{"passthrough": withTarget, "forward": withForward}
}

// Verifies: R10.6
func TestHalfClosedConnectionsAreAnswered(t *testing.T) {
	const up, down = 5<<20 + 3, 7<<20 + 1
	for mode, with := range modes() {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, with("digest", newTarget(t, digestServer(20, down))), with("none", newTarget(t, digestServer(21, 0))))
			c := w.dial("digest")
			_, err := io.Copy(c, contentOf(22, up))
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			answer := bufio.NewReader(c)
			line, err := answer.ReadString('\n')
			require.NoError(t, err)
			assert.Equal(t, lineOfContent(22, up), line, "what the server received until the end")
			assert.Equal(t, lineOfContent(20, down), lineOf(t, answer), "what it sent after that")

			empty := w.dial("none")
			require.NoError(t, empty.CloseWrite(), "an end without any byte")
			raw, err := io.ReadAll(empty)
			require.NoError(t, err)
			assert.Equal(t, lineOfContent(0, 0), string(raw))
		})
	}
}

// The server ends first and the client goes on sending.
func TestServersHalfCloseToo(t *testing.T) {
	const up, down = 3 << 20, 1 << 20
	for mode, with := range modes() {
		t.Run(mode, func(t *testing.T) {
			received := make(chan string, 1)
			w := newWorld(t, with("first", newTarget(t, func(c halfCloser) {
				_, err := io.Copy(c, contentOf(23, down))
				if err == nil {
					err = c.CloseWrite()
				}
				hash := sha256.New()
				n, readErr := io.Copy(hash, c)
				if err == nil && readErr == nil {
					received <- digestLine(hash.Sum(nil), n)
				}
			})))
			c := w.dial("first")
			assert.Equal(t, lineOfContent(23, down), lineOf(t, c))
			_, err := io.Copy(c, contentOf(24, up)) // the server's direction has ended
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			select {
			case line := <-received:
				assert.Equal(t, lineOfContent(24, up), line)
			case <-time.After(patience):
				t.Fatal("the server saw no end")
			}
			await(t, "the connection has ended in good order", func() bool { return len(w.sidecar.logs.find("connection ended")) == 1 })
			assert.Empty(t, w.sidecar.logs.find("connection ended")[0].str("error"))
		})
	}
}

// Verifies: R10.6
func TestLargeTransfersBothWaysAtOnce(t *testing.T) {
	const size = 256 << 20
	wantDown, wantUp := lineOfContent(25, size), lineOfContent(26, size)
	for mode, with := range modes() {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, with("exchange", newTarget(t, exchangeServer(25, size))))
			c := w.dial("exchange")
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(c, contentOf(26, size))
				if err == nil {
					err = c.CloseWrite()
				}
				sent <- err
			}()
			down := sha256.New()
			n, err := io.CopyN(down, c, size)
			require.NoError(t, err)
			assert.Equal(t, wantDown, digestLine(down.Sum(nil), n))
			require.NoError(t, <-sent)
			rest, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.Equal(t, wantUp, string(rest))
			await(t, "the stream has ended", func() bool { return w.streamsAtGateway() == 0 })
			tunnel := w.gateway.tunnels(t)[0]
			assert.Zero(t, tunnel.Resumes)
			assert.EqualValues(t, size, tunnel.Received)
			assert.EqualValues(t, size+len(rest), tunnel.Sent)
		})
	}
}
