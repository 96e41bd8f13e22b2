package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// newTarget serves TCP connections until the test ends and returns its address. serve owns the connection while it runs;
// it is closed afterwards.
func newTarget(t *testing.T, serve func(halfCloser)) string {
	t.Helper()
	l, err := net.Listen("tcp", loopback)
	require.NoError(t, err)
	var mu sync.Mutex
	var tasks sync.WaitGroup
	open, closed := map[net.Conn]bool{}, false
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if closed {
				mu.Unlock()
				_ = c.Close()
				return
			}
			open[c] = true
			tasks.Go(func() {
				serve(c.(halfCloser))
				mu.Lock()
				defer mu.Unlock()
				_ = c.Close()
				delete(open, c)
			})
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		mu.Lock()
		closed = true
		_ = l.Close()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		tasks.Wait()
	})
	return l.Addr().String()
}

// echoServer returns what it gets, and its end.
func echoServer(c halfCloser) { _, _ = io.Copy(c, struct{ io.Reader }{c}) } // errors show at the other side

// digestServer reads to the end, then answers one line (see digestLine) and more bytes of content, and ends.
func digestServer(seed uint64, more int64) func(halfCloser) {
	return func(c halfCloser) {
		hash := sha256.New()
		n, err := io.Copy(hash, c)
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, digestLine(hash.Sum(nil), n)); err == nil {
			_, _ = io.Copy(c, contentOf(seed, more))
		}
	}
}

// exchangeServer sends content and receives at once; when it has seen the end it answers with one line (see digestLine).
func exchangeServer(seed uint64, n int64) func(halfCloser) {
	return func(c halfCloser) {
		var line string
		received := make(chan struct{})
		go func() {
			defer close(received)
			hash := sha256.New()
			if got, err := io.Copy(hash, c); err == nil {
				line = digestLine(hash.Sum(nil), got)
			}
		}()
		_, err := io.Copy(c, contentOf(seed, n))
		if err != nil {
			_ = c.Close()
		}
		<-received
		_, _ = io.WriteString(c, line)
	}
}

// digestLine is a hash and the number of bytes that it is of.
func digestLine(hash []byte, n int64) string {
	return fmt.Sprintf("%s %d\n", hex.EncodeToString(hash), n)
}

// sourceServer sends content and ends.
func sourceServer(seed uint64, n int64) func(halfCloser) {
	return func(c halfCloser) { _, _ = io.Copy(c, contentOf(seed, n)) }
}

// contentOf is n bytes that only the seed determines and that do not compress.
func contentOf(seed uint64, n int64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// lineOfContent is the digestLine of content.
func lineOfContent(seed uint64, n int64) string {
	hash := sha256.New()
	_, _ = io.Copy(hash, contentOf(seed, n)) // neither fails
	return digestLine(hash.Sum(nil), n)
}

// lineOf reads to the end and returns the digestLine of it.
func lineOf(t *testing.T, r io.Reader) string {
	t.Helper()
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	require.NoError(t, err)
	return digestLine(hash.Sum(nil), n)
}

// httpClient makes requests without keeping connections.
func httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
}

// statusOf is the status of an answer to GET; 0 when there was none.
func statusOf(url string) int {
	answer, err := httpClient().Get(url)
	if err != nil {
		return 0
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

// request makes a request and returns status and body.
func request(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	answer, err := httpClient().Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(text)
}

// get makes a request that must be answered with 200, and returns the body.
func get(t *testing.T, url string) string {
	t.Helper()
	status, body := request(t, http.MethodGet, url, "")
	require.Equal(t, http.StatusOK, status, body)
	return body
}
