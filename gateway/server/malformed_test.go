package server_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// secret is a token that nothing may repeat.
const secret = "eyJhbGciOi.SECRET.c2ln"

// answers writes text over c and returns the answers until the server closes, or as many as there are within a second of
// silence; open says whether the connection still stood then.
func answers(t *testing.T, c net.Conn, text string) (all []*http.Response, bodies []string, open bool) {
	t.Helper()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = io.WriteString(c, text) // the server may close before it has all
	}()
	defer func() {
		c.Close()
		<-wrote
	}()
	r := bufio.NewReader(c)
	for {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		if _, err := r.Peek(1); err != nil {
			timeout, ok := err.(net.Error)
			return all, bodies, ok && timeout.Timeout()
		}
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return append(all, resp), bodies, true
		}
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		all, bodies = append(all, resp), append(bodies, string(body))
	}
}

// get is a request with more header lines.
func get(target string, lines ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: gateway\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

var upgradeLines = []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}

// lines is a header of an upgrade, with a line replaced by (name: value), or left out where the value is "-".
func lines(instead ...string) []string {
	all := append([]string{"Authorization: Bearer a-token-of-alice", "Sec-WebSocket-Protocol: " + link.Subprotocol}, upgradeLines...)
	for _, line := range instead {
		name, value, _ := strings.Cut(line, ":")
		kept := all[:0:0]
		for _, l := range all {
			if was, _, _ := strings.Cut(l, ":"); was != name {
				kept = append(kept, l)
			}
		}
		if all = kept; strings.TrimSpace(value) != "-" {
			all = append(all, line)
		}
	}
	return all
}

func TestMalformedRequests(t *testing.T) {
	f := start(t, nil)
	auth := "Authorization: Bearer " + secret
	for _, c := range []struct {
		what, text string
		status     int
		code       errs.Code
	}{
		// sizes
		{"header of 1 MB", get("/v1/tunnel", auth, "X: "+strings.Repeat("x", 1<<20)), 431, errs.BadRequest},
		{"10,000 lines", get("/v1/tunnel", auth, strings.Repeat("a:b\r\n", 10_000)+"c: d"), 431, errs.BadRequest},
		{"200 lines", get("/v1/tunnel", auth, strings.Repeat("a:b\r\n", 200)+"c: d"), 431, errs.BadRequest},
		{"huge query", get("/v1/tunnel?"+strings.Repeat("q", 100_000), auth), 431, errs.BadRequest},
		{"large query", get("/v1/tunnel?"+strings.Repeat("q", 10_000), auth), 401, errs.TokenInvalid},
		// syntax
		{"folded header", get("/v1/tunnel", "X: a", " b", auth), 400, errs.BadRequest},
		{"folded token", get("/v1/tunnel", "Authorization: Bearer", " "+secret), 400, errs.BadRequest},
		{"NUL in a token", get("/v1/tunnel", auth+"\x00"), 400, errs.BadRequest},
		{"NUL in a name", get("/v1/tunnel", "X\x00: a", auth), 400, errs.BadRequest},
		{"control bytes in a value", get("/v1/tunnel", auth, "X: \x01"), 400, errs.BadRequest},
		{"token without a colon", get("/v1/tunnel", "Authorization Bearer "+secret), 400, errs.BadRequest},
		{"space before the colon", get("/v1/tunnel", "Authorization : Bearer "+secret), 400, errs.BadRequest},
		{"space within the name", get("/v1/tunnel", auth, "X Y: z"), 400, errs.BadRequest},
		{"empty name", get("/v1/tunnel", auth, ": z"), 400, errs.BadRequest},
		{"bare LF", "GET /v1/tunnel HTTP/1.1\nHost: x\n" + auth + "\n\n\r\n\r\n", 400, errs.BadRequest},
		{"bare CR in a value", get("/v1/tunnel", auth, "X: a\rb"), 400, errs.BadRequest},
		{"bare CR as a line's end", get("/v1/tunnel", auth+"\rX: y"), 400, errs.BadRequest},
		{"no Host", "GET /v1/tunnel HTTP/1.1\r\n" + auth + "\r\n\r\n", 400, errs.BadRequest},
		{"no version", "GET /v1/tunnel\r\n\r\n", 400, errs.BadRequest},
		{"version 3.0", "GET /v1/tunnel HTTP/3.0\r\nHost: x\r\n" + auth + "\r\n\r\n", 400, errs.BadRequest},
		{"version 1.2", "GET /v1/tunnel HTTP/1.2\r\nHost: x\r\n" + auth + "\r\n\r\n", 400, errs.BadRequest},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, errs.BadRequest},
		{"token as the target", "GET " + secret + " HTTP/1.1\r\nHost: x\r\n\r\n", 400, errs.BadRequest},
		{"token as the method", secret + " / HTTP/1.1\r\nHost: x\r\n\r\n", 405, errs.BadRequest},
		{"token as the version", "GET / " + secret + "\r\nHost: x\r\n\r\n", 400, errs.BadRequest},
		{"nonsense", "\x16\x03\x01 hello\r\n\r\n", 400, errs.BadRequest},
		// twice
		{"Host twice", get("/v1/tunnel", "Host: other", auth), 400, errs.BadRequest},
		{"Authorization twice", get("/v1/tunnel", auth, "Authorization: Bearer other"), 400, errs.BadRequest},
		{"Authorization twice, the same", get("/v1/tunnel", auth, auth), 400, errs.BadRequest},
		{"key twice", get("/v1/tunnel", append(lines(), upgradeLines[3])...), 400, errs.BadRequest},
		{"version twice", get("/v1/tunnel", append(lines(), "Sec-WebSocket-Version: 8")...), 400, errs.BadRequest},
		// bodies
		{"a body of 1 GB", get("/v1/tunnel", append(lines(), "Content-Length: 1000000000")...), 413, errs.BadRequest},
		{"a small body", get("/v1/tunnel", append(lines(), "Content-Length: 5")...) + "hello", 413, errs.BadRequest},
		{"chunks", get("/v1/tunnel", append(lines(), "Transfer-Encoding: chunked")...) + strings.Repeat("5\r\nhello\r\n", 10), 413, errs.BadRequest},
		{"Content-Length twice", get("/v1/tunnel", auth, "Content-Length: 0", "Content-Length: 5"), 400, errs.BadRequest},
		{"Content-Length twice, the same", get("/v1/tunnel", auth, "Content-Length: 0", "Content-Length: 0"), 400, errs.BadRequest},
		{"Content-Length as a list", get("/v1/tunnel", auth, "Content-Length: 0, 0"), 400, errs.BadRequest},
		{"Content-Length with a sign", get("/v1/tunnel", auth, "Content-Length: +0"), 400, errs.BadRequest},
		{"Content-Length below zero", get("/v1/tunnel", auth, "Content-Length: -1"), 400, errs.BadRequest},
		{"Content-Length and chunks", get("/v1/tunnel", auth, "Content-Length: 4", "Transfer-Encoding: chunked") + "0\r\n\r\n", 400, errs.BadRequest},
		{"chunks and Content-Length", get("/v1/tunnel", auth, "Transfer-Encoding: chunked", "Content-Length: 4") + "0\r\n\r\n", 400, errs.BadRequest},
		{"chunks twice", get("/v1/tunnel", auth, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + "0\r\n\r\n", 400, errs.BadRequest},
		{"chunks, then another", get("/v1/tunnel", auth, "Transfer-Encoding: chunked, identity") + "0\r\n\r\n", 400, errs.BadRequest},
		{"chunks with a space", get("/v1/tunnel", auth, "Transfer-Encoding : chunked") + "0\r\n\r\n", 400, errs.BadRequest},
		{"chunks with a tab", get("/v1/tunnel", auth, "Transfer-Encoding: \tchunked") + "0\r\n\r\n", 400, errs.BadRequest},
		{"chunks of HTTP/1.0", "GET /v1/tunnel HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, errs.BadRequest},
		{"an expectation", get("/v1/tunnel", append(lines(), "Expect: 100-continue", "Content-Length: 5")...), 417, 0},
		// paths
		{"up", get("/v1/stream/../tunnel", auth), 404, errs.NotFound},
		{"up, encoded", get("/v1/stream/%2e%2e/tunnel", auth), 404, errs.NotFound},
		{"up, half encoded", get("/v1/stream/.%2e/tunnel", auth), 404, errs.NotFound},
		{"slash, encoded", get("/v1/stream/git%2fother", auth), 404, errs.NotFound},
		{"slash and dots, encoded", get("/v1/stream/..%2f..%2freadyz", auth), 404, errs.NotFound},
		{"backslash", get("/v1/stream/..\\tunnel", auth), 404, errs.NotFound},
		{"two slashes", get("//v1/tunnel", auth), 404, errs.NotFound},
		{"two slashes within", get("/v1/stream//git", auth), 404, errs.NotFound},
		{"a slash at the end", get("/v1/tunnel/", auth), 404, errs.NotFound},
		{"encoded letters", get("/v1/%74unnel", auth), 404, errs.NotFound},
		{"NUL, encoded", get("/v1/stream/git%00", auth), 404, errs.NotFound},
		{"no encoding", get("/v1/stream/git%zz", auth), 404, errs.NotFound},
		{"only dots", get("/v1/stream/.", auth), 404, errs.NotFound},
		{"capitals", get("/V1/TUNNEL", auth), 404, errs.NotFound},
		{"semicolon", get("/v1/tunnel;x=y", auth), 404, errs.NotFound},
		{"another method", "POST /v1/tunnel HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n\r\n", 405, errs.BadRequest},
		{"another method to another path", "DELETE /healthz HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n\r\n", 405, errs.BadRequest},
		{"CONNECT", "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n" + auth + "\r\n\r\n", 405, errs.BadRequest},
		{"TRACE", "TRACE /healthz HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n\r\n", 405, errs.BadRequest},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 405, errs.BadRequest},
		{"a whole URL", get("http://gateway/v1/tunnel", auth), 401, errs.TokenInvalid},
		// tokens elsewhere
		{"token in the query", get("/v1/tunnel?token=a-token-of-alice&access_token=a-token-of-alice"), 401, errs.TokenMissing},
		{"token in a cookie", get("/v1/tunnel", "Cookie: token=a-token-of-alice"), 401, errs.TokenMissing},
		{"token as the user", get("http://user:a-token-of-alice@gateway/v1/tunnel"), 401, errs.TokenMissing},
		{"token of a proxy", get("/v1/tunnel", "Proxy-Authorization: Bearer a-token-of-alice"), 401, errs.TokenMissing},
		// upgrades
		{"HTTP/1.0", "GET /v1/tunnel HTTP/1.0\r\nHost: x\r\n" + strings.Join(lines(), "\r\n") + "\r\n\r\n", 400, errs.BadRequest},
		{"no Connection", get("/v1/tunnel", lines("Connection: -")...), 400, errs.BadRequest},
		{"no Upgrade", get("/v1/tunnel", lines("Upgrade: -")...), 400, errs.BadRequest},
		{"h2c", get("/v1/tunnel", lines("Upgrade: h2c")...), 400, errs.BadRequest},
		{"no version", get("/v1/tunnel", lines("Sec-WebSocket-Version: -")...), 400, errs.BadRequest},
		{"version 8", get("/v1/tunnel", lines("Sec-WebSocket-Version: 8")...), 400, errs.BadRequest},
		{"versions 8 and 13", get("/v1/tunnel", lines("Sec-WebSocket-Version: 8, 13")...), 400, errs.BadRequest},
		{"no key", get("/v1/tunnel", lines("Sec-WebSocket-Key: -")...), 400, errs.BadRequest},
		{"key that is no key", get("/v1/tunnel", lines("Sec-WebSocket-Key: !")...), 400, errs.BadRequest},
		{"key too short", get("/v1/tunnel", lines("Sec-WebSocket-Key: c2hvcnQ=")...), 400, errs.BadRequest},
		{"no subprotocol", get("/v1/tunnel", lines("Sec-WebSocket-Protocol: chat")...), 400, errs.VersionUnsupported},
		{"another origin", get("/v1/tunnel", append(lines(), "Origin: https://evil.example")...), 400, errs.BadRequest},
	} {
		conn, err := net.Dial("tcp", f.Addr().String())
		require.NoError(t, err)
		got, bodies, open := answers(t, conn, c.text)
		if !assert.Len(t, got, 1, c.what) {
			for i := range got {
				t.Log(got[i].StatusCode)
			}
			continue
		}
		if !assert.Equal(t, c.status, got[0].StatusCode, c.what) || c.status == 101 {
			continue
		}
		if c.code != 0 {
			assert.Contains(t, bodies[0], c.code.String(), c.what)
		}
		assert.NotContains(t, bodies[0], "SECRET", c.what)
		assert.False(t, open, "%s: the connection is closed after a refusal", c.what)
		assert.True(t, got[0].Close, "%s: and the answer says so", c.what)
	}
	assert.NotContains(t, f.log.String(), "SECRET")
	assert.NotContains(t, f.log.String(), "a-token-of-alice")
}

// Requests that come one behind the other are answered in their order, up to the first refusal and not without end.
func TestPipelinedRequests(t *testing.T) {
	f := start(t, nil)
	for _, c := range []struct {
		what, text string
		want       []int
	}{
		{"three", strings.Repeat(get("/healthz"), 3), []int{200, 200, 200}},
		{"a refusal ends it", get("/healthz") + get("/v1/tunnel") + get("/healthz"), []int{200, 401}},
		{"what looks like a body is no request", get("/healthz", "Content-Length: 30") + get("/readyz"), []int{413}},
		{"a hundred", strings.Repeat(get("/healthz"), 150), slices.Repeat([]int{200}, 100)},
	} {
		conn, err := net.Dial("tcp", f.Addr().String())
		require.NoError(t, err)
		all, _, open := answers(t, conn, c.text)
		var got []int
		for _, resp := range all {
			got = append(got, resp.StatusCode)
		}
		assert.Equal(t, c.want, got, c.what)
		assert.Equal(t, c.what == "three", open, c.what)
	}
}

// Lists may be spread over several lines, protocols may be many, and extensions that are not known are declined.
func TestUnusualUpgrades(t *testing.T) {
	f := start(t, nil)
	for what, header := range map[string][]string{
		"Connection as a list":      lines("Connection: keep-alive, Upgrade"),
		"Connection in two lines":   append(lines("Connection: keep-alive"), "Connection: Upgrade"),
		"many protocols":            lines("Sec-WebSocket-Protocol: " + strings.Repeat("chat, ", 1000) + link.Subprotocol),
		"protocols in two lines":    append(lines("Sec-WebSocket-Protocol: chat"), "Sec-WebSocket-Protocol: "+link.Subprotocol),
		"odd extensions":            append(lines(), "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99; x=\"y, z\", foo, ;;,"),
		"names in small letters":    strings.Split(strings.ToLower(strings.Join(lines("Sec-WebSocket-Key: -", "Authorization: -"), "\n"))+"\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\nauthorization: "+token, "\n"),
		"a query that is not asked": lines(),
	} {
		conn, err := net.Dial("tcp", f.Addr().String())
		require.NoError(t, err)
		target := "/v1/tunnel"
		if strings.HasPrefix(what, "a query") {
			target += "?token=wrong"
		}
		got, _, _ := answers(t, conn, get(target, header...))
		require.Len(t, got, 1, what)
		assert.Equal(t, 101, got[0].StatusCode, what)
		assert.Equal(t, link.Subprotocol, got[0].Header.Get("Sec-WebSocket-Protocol"), what)
		assert.Empty(t, got[0].Header.Get("Sec-WebSocket-Extensions"), what)
	}
}
