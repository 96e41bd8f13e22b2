package e2e

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
)

// withClaims has tenant and tier come from claims of these names, so that subjects differ from tenants, and lets every
// tenant use every route.
func withClaims() option {
	return withGateway(func(c *gatewayconfig.Config) {
		c.Auth.Issuers[0].Tenant, c.Auth.Issuers[0].Tier = "{tenant}", "{tier}"
		c.Policy = []gatewayconfig.Rule{{Tenants: []string{"*"}, Routes: []string{"*"}}}
	})
}

// signed makes a token of a tenant that is valid for an hour, with further claims.
func (w *world) signed(tenant string, claims testbed.Claims) string {
	w.t.Helper()
	all := testbed.Claims{"sub": tenant + "-user", "tenant": tenant, "tier": gatewayconfig.DefaultTier, "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	token, err := w.issuer.Sign(all)
	require.NoError(w.t, err)
	return token
}

// ask makes a request of an admin API with a token ("": none) and, unless it is nil, a body as JSON. answer gets the
// answer's JSON unless it is nil.
func ask(t *testing.T, method, url, token string, body, answer any) (status int) {
	t.Helper()
	var text io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		require.NoError(t, err)
		text = strings.NewReader(string(raw))
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, text)
	require.NoError(t, err)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	got, err := httpClient().Do(r)
	require.NoError(t, err)
	defer got.Body.Close()
	raw, err := io.ReadAll(got.Body)
	require.NoError(t, err)
	if answer != nil {
		require.NoError(t, json.Unmarshal(raw, answer), "%s", raw)
	}
	return got.StatusCode
}

// guest is a client of one token: a tunnel with a stream to the route "echo", and a plain stream to it.
type guest struct {
	tunnel *link.Tunnel
	lane   *lane
	stream *link.Stream
	plain  *websocket.Conn
}

func (w *world) guest(token string) *guest {
	w.t.Helper()
	g := &guest{plain: w.mustStream("echo", token)}
	g.tunnel, g.lane = w.connectLink(token)
	var err error
	g.stream, err = openLink(w.t, g.tunnel, "echo")
	require.NoError(w.t, err)
	g.works(w.t)
	return g
}

// works asserts that both streams carry bytes.
func (g *guest) works(t *testing.T) {
	t.Helper()
	echoes(t, g.stream, "through the tunnel")
	echoesPlain(t, g.plain, "without a tunnel")
}

func echoesPlain(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	require.NoError(t, c.WriteMessage(websocket.BinaryMessage, []byte(text)))
	var got string
	for len(got) < len(text) {
		_, part, err := c.ReadMessage()
		require.NoError(t, err)
		got += string(part)
	}
	require.Equal(t, text, got)
}

// isOver asserts that the tunnel and both streams end with a code that comes over the wire.
func (g *guest) isOver(t *testing.T, code errs.Code, frame int) {
	t.Helper()
	require.ErrorIs(t, <-g.lane.ended, code)
	require.NotNil(t, g.lane.closeFrame())
	assert.Equal(t, frame, g.lane.closeFrame().Code)
	assert.Contains(t, g.lane.closeFrame().Text, code.String())
	_, err := g.stream.Read(make([]byte, 1))
	require.ErrorIs(t, err, code)
	plainIsOver(t, g.plain, code, frame)
}

func plainIsOver(t *testing.T, c *websocket.Conn, code errs.Code, frame int) {
	t.Helper()
	_, closed := readStream(t, c)
	assert.Equal(t, frame, closed.Code, closed.Text)
	assert.Contains(t, closed.Text, code.String())
}

// isRefused asserts that a token is refused at both upgrades.
func (w *world) isRefused(t *testing.T, token string, code errs.Code) {
	t.Helper()
	status, answer := w.refusal("echo", token)
	assert.Equal(t, code.Info().HTTP, status)
	assert.Equal(t, code.String(), answer.Code, answer.Message)
	_, err := w.dialLane(token)
	require.ErrorIs(t, err, websocket.ErrBadHandshake)
}
