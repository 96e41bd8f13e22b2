package e2e

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/browser"
	"fairlead/shared/testbed/fault"
)

const (
	operatorToken = "operators-token-0123456789"
	viewerToken   = "viewers-token-0123456789"
	shopTenant    = "shop/web"
)

// onlooker is a person with the gateway's page.
type onlooker struct {
	*browser.Tab
	t *testing.T
}

// look opens the page and signs in. When the test ends it asserts that the browser had nothing to complain about, that
// nothing was asked for elsewhere, and that the token was in no address.
func look(t *testing.T, b *browser.Browser, g *gatewayNode, view browser.View, token string) *onlooker {
	t.Helper()
	o := &onlooker{b.NewTab(t, view), t}
	require.NoError(t, o.Go(g.url("/")))
	t.Cleanup(func() {
		assert.Empty(t, o.Complaints())
		assert.Empty(t, o.Elsewhere(g.url("")))
		for _, address := range o.Requests() {
			assert.NotContains(t, address, token)
		}
	})
	o.wait(`document.getElementById('signin').open`)
	require.NoError(t, o.Do(chromedp.SendKeys(chromedp.CSS("#token"), token+kb.Enter)))
	o.wait(`document.getElementById('link').dataset.link === 'live' && document.querySelector('.backend') && document.querySelector('#tunnels tbody tr')`)
	return o
}

func (o *onlooker) wait(expression string, args ...any) {
	o.t.Helper()
	require.NoError(o.t, o.Wait(fmt.Sprintf(expression, args...)))
}

func seen[T any](o *onlooker, expression string) T {
	o.t.Helper()
	value, err := browser.Eval[T](o.Tab, expression)
	require.NoError(o.t, err, expression)
	return value
}

// text is what a person reads at a place.
func (o *onlooker) text(selector string) string {
	o.t.Helper()
	return seen[string](o, fmt.Sprintf(`document.querySelector(%q)?.innerText.replaceAll('\u00a0', ' ') ?? 'there is none'`, selector))
}

func (o *onlooker) texts(selector string) []string {
	o.t.Helper()
	return seen[[]string](o, fmt.Sprintf(`[...document.querySelectorAll(%q)].filter((e) => e.checkVisibility()).map((e) => e.innerText.replaceAll('\u00a0', ' ').trim())`, selector))
}

// press clicks the first visible button within a place whose text begins like this.
func (o *onlooker) press(within, text string) {
	o.t.Helper()
	o.wait(`(() => { const b = [...document.querySelectorAll(%q)].find((b) => b.checkVisibility() && b.textContent.trim().startsWith(%q)); b?.click(); return b })()`, within+" button", text)
}

// choose sets a backend's breaker, and confirms.
func (o *onlooker) choose(backend, mode, confirm string) {
	o.t.Helper()
	o.press(fmt.Sprintf(".backend[data-name=%s] .segments", backend), mode)
	o.wait(`document.getElementById('confirm').open`)
	o.press("#confirm", confirm)
	o.wait(`!document.getElementById('confirm').open`)
}

// photograph takes a picture for people to look at: go test -artifacts -outputdir DIR.
func (o *onlooker) photograph(name string) {
	o.t.Helper()
	require.NoError(o.t, o.Screenshot(filepath.Join(o.t.ArtifactDir(), name+".png"), false))
}

// flow keeps bytes going to an echoing target and back, until the test ends.
func flow(t *testing.T, c net.Conn) {
	t.Helper()
	stop := make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		for chunk := make([]byte, 16<<10); ; {
			select {
			case <-stop:
				_ = c.Close()
				return
			case <-pace.C:
			}
			if _, err := c.Write(chunk); err != nil {
				return // the page will show that nothing flows
			}
		}
	})
	tasks.Go(func() { _, _ = io.Copy(io.Discard, c) })
	t.Cleanup(func() {
		close(stop)
		tasks.Wait()
	})
}

// harbour is a gateway with an operator, a viewer, an audit log, two tenants' sidecars, and a backend that is down.
type harbour struct {
	*world
	flaky *fault.Proxy // before the backend that is down
	shop  *sidecarNode
}

func newHarbour(t *testing.T) *harbour {
	t.Helper()
	h := &harbour{flaky: testbed.NewProxy(t, newTarget(t, echoServer))}
	require.NoError(t, h.flaky.Refuse())
	target := newTarget(t, echoServer)
	h.world = newWorld(t, withTarget("echo", target), withForward("behind", target), withTarget("flaky", h.flaky.Addr()),
		func(w *world) {
			c := &w.gatewayConfig
			c.Policy = append(c.Policy, gatewayconfig.Rule{Tenants: []string{shopTenant}, Routes: []string{"*"}})
			c.Breaker.Failures, c.Breaker.RetryAfter = 3, time.Hour
			c.Limits.Shedding.Enabled = false // what else this machine does is not part of the picture
			c.Audit.File = filepath.Join(w.dir, "audit.jsonl")
			c.Admin.Tokens = []gatewayconfig.AdminToken{
				{Name: "olga", Role: gatewayconfig.RoleOperator, File: w.writeFile("olga", operatorToken)},
				{Name: "victor", Role: gatewayconfig.RoleViewer, File: w.writeFile("victor", viewerToken)}}
		})
	before := h.sidecarConfig
	h.sidecarConfig.Gateway.TokenFile = filepath.Join(h.dir, "shop.token")
	h.sidecarConfig.Gateway.Endpoints = []string{h.endpoint(h.gateway.address)} // not by way of the proxy
	require.NoError(t, testbed.WriteToken(h.sidecarConfig.Gateway.TokenFile, h.token(shopTenant, time.Hour)))
	h.shop = h.sidecarInside("shop")
	h.sidecarConfig = before
	await(t, "the second sidecar is ready", func() bool { return statusOf(h.shop.url("/readyz")) == 200 })
	flow(t, h.dial("echo"))
	flow(t, h.dial("behind"))
	flow(t, h.dialAt(h.shop, "behind"))
	for range 3 {
		c := h.dial("flaky")
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
	}
	return h
}

// Verifies: R3.9
func TestThePageOfARealGateway(t *testing.T) {
	h := newHarbour(t)
	b := browser.New(t)
	o := look(t, b, h.gateway, browser.View{}, operatorToken)
	assert.Len(t, recordedActs(t, h.gatewayConfig.Audit.File, "administer"), 1, "the page asked once before it had a token")

	t.Run("tunnels by tenant", func(t *testing.T) {
		o.wait(`document.querySelectorAll('#tunnels tr.tenant').length === 2 && document.getElementById('tile-streams').textContent === '3'`)
		assert.Equal(t, []string{ownTenant, shopTenant}, o.texts("#tunnels tr.tenant td:first-child"))
		assert.Equal(t, "2", o.text("#tile-tunnels"))
		o.wait(`/^[1-9]/.test(document.getElementById('tile-throughput').textContent)`)
		o.wait(`[...document.querySelectorAll('#tunnels tr.tenant td.col-sent')].every((c) => /^[1-9].* [kM]B/.test(c.textContent))`)
	})
	t.Run("down to a stream", func(t *testing.T) {
		shopTunnel := h.shop.tunnelID(t)
		o.press("#tunnels-panel header", "Unfold all")
		o.photograph("1-overview")
		o.press("#tunnels tr.tunnel", shopTunnel)
		o.wait(`document.getElementById('drawer-title').textContent === %q && document.querySelectorAll('#drawer .streams tbody tr').length === 1`, shopTunnel)
		o.photograph("2-tunnel")
		o.press("#drawer .streams tbody", "")
		o.wait(`location.hash.includes('stream=') && document.querySelectorAll('#drawer .station').length === 3`)
		o.wait(`/\([1-9].*[kM]B\/s\)/.test(document.querySelector('#drawer .facts-list').textContent)`)
		stations := o.texts("#drawer .station")
		for i, words := range [][]string{{"Sidecar", shopTenant, "connected"}, {"Replica", "gateway", "this one"}, {"Backend", sshRoute, h.ssh.Addr(), "route behind", "closed"}} {
			for _, word := range words {
				assert.Contains(t, stations[i], word)
			}
		}
		hops := o.texts("#drawer .hop")
		require.Len(t, hops, 2)
		assert.Contains(t, hops[0], shopTunnel)
		assert.Contains(t, hops[1], "forward")
		o.photograph("3-stream")
		o.press("#drawer header", "×")
		o.wait(`document.getElementById('drawer').hidden`)
	})
	t.Run("a breaker", func(t *testing.T) { h.closesTheBreaker(t, o) })
	t.Run("a cut of the network", func(t *testing.T) { h.isCut(t, o) })
	t.Run("a viewer", func(t *testing.T) { h.onlyLooks(t, b) })
	t.Run("a phone", func(t *testing.T) {
		phone := look(t, b, h.gateway, browser.View{Width: 390, Height: 844, Dark: true, Mobile: true}, viewerToken)
		assert.LessOrEqual(t, seen[int](phone, `document.documentElement.scrollWidth`), 390, "nothing sticks out sideways")
		phone.photograph("8-phone")
		seen[bool](phone, `document.getElementById('events-panel').scrollIntoView(), true`)
		phone.photograph("9-phone-events")
	})
}

// closesTheBreaker: an operator mends a backend, and lets the gateway use it before the breaker would by itself.
func (h *harbour) closesTheBreaker(t *testing.T, o *onlooker) {
	state := func(want string) {
		t.Helper()
		o.wait(`document.querySelector('.backend[data-name=flaky] .badge').textContent === %q`, want)
	}
	state("open")
	assert.Equal(t, "1 breaker open of 3", o.text("#backends-sum"))
	assert.Contains(t, o.text(".backend[data-name=flaky] .why"), "3 failures in a row")
	assert.Contains(t, o.text(".backend[data-name=flaky] .why"), "probes in")
	assert.Regexp(t, `last \d+ s ago · .*cannot be reached`, o.text(".backend[data-name=flaky] .why"))
	assert.Contains(t, o.text("#events"), "flaky")
	require.NoError(t, h.flaky.Accept())
	o.press(".backend[data-name=flaky] .segments", "Close")
	o.wait(`document.getElementById('confirm').open`)
	o.photograph("4-confirm")
	o.press("#confirm", "Cancel")
	o.wait(`!document.getElementById('confirm').open`)
	assert.Empty(t, h.changes(t), "nothing is done without confirmation")

	o.choose("flaky", "Close", "Close it")
	state("closed")
	echoes(t, h.dial("flaky"), "through the breaker that was closed")
	assert.Contains(t, o.text(".backend[data-name=flaky] .why"), "forced closed by olga")
	o.photograph("5-forced")
	o.choose("flaky", "Auto", "Set to auto")
	o.wait(`document.querySelector('.backend[data-name=flaky] .segments button').getAttribute('aria-pressed') === 'true'`)
	state("closed")
	acts := h.changes(t)
	require.Len(t, acts, 2)
	for i, mode := range []string{"closed", "auto"} {
		assert.Equal(t, []string{"olga", "allowed", "PUT /api/backends/flaky/breaker", `{"mode":"` + mode + `"}`}, []string{acts[i].Actor, acts[i].Result, acts[i].Target, acts[i].Detail})
	}
	changes := recordedActs(t, h.gatewayConfig.Audit.File, "breaker")
	require.NotEmpty(t, changes)
	var byOlga []string
	for _, c := range changes {
		if c.Actor == "olga" {
			byOlga = append(byOlga, c.Backend+": "+c.Detail)
		}
	}
	require.NotEmpty(t, byOlga, "%v", changes)
	assert.Contains(t, byOlga[0], "flaky: from open to closed")
	o.wait(`[...document.querySelectorAll('#events li')].filter((e) => e.querySelector('.kind').textContent === 'breaker' && e.textContent.includes('to closed')).length > 0`)
}

// isCut: the network breaks, the tunnel waits, comes back, and the streams have noticed nothing.
func (h *harbour) isCut(t *testing.T, o *onlooker) {
	tunnel := h.sidecar.tunnelID(t)
	require.NoError(t, h.proxy.Refuse())
	require.Positive(t, h.proxy.Cut())
	o.wait(`[...document.querySelectorAll('#tunnels tr.tunnel')].find((r) => r.textContent.includes(%q)).querySelector('.badge').textContent === 'detached'`, tunnel)
	o.wait(`document.getElementById('tiles').textContent.includes('1 detached')`)
	o.photograph("6-detached")
	require.NoError(t, h.proxy.Accept())
	o.wait(`[...document.querySelectorAll('#tunnels tr.tunnel')].find((r) => r.textContent.includes(%q)).querySelector('.badge').textContent === 'connected'`, tunnel)
	of := func(tenant string) string {
		return seen[string](o, fmt.Sprintf(`[...document.querySelectorAll('#strip .row')].find((r) => r.firstChild.textContent === %q)?.querySelector('.lane').getAttribute('aria-label') ?? ''`, tenant))
	}
	o.wait(`[...document.querySelectorAll('#strip .row')].find((r) => r.firstChild.textContent === %q).querySelector('.lane').getAttribute('aria-label').includes('1 resumed')`, ownTenant)
	assert.Contains(t, of(ownTenant), "1 detached")
	assert.NotContains(t, of(ownTenant), "lost")
	assert.Equal(t, shopTenant+": 1 connected", of(shopTenant), "the other tenant's way was not cut")
	kinds := seen[[]string](o, fmt.Sprintf(`[...document.querySelectorAll('#events li')].filter((e) => e.textContent.includes(%q)).map((e) => e.querySelector('.kind').textContent).filter((kind) => kind !== 'refused' && kind !== 'failed')`, tunnel)) // opens were, before
	assert.Equal(t, []string{"resumed", "detached", "connected"}, kinds, "newest first")
	o.wait(`document.getElementById('tile-resumes').textContent === '1'`)
	assert.Equal(t, "4", o.text("#tile-streams"), "no stream has ended")
	o.wait(`[...document.querySelectorAll('#tunnels tr.tunnel td.col-sent')].every((c) => /^[1-9]/.test(c.textContent))`)
	o.photograph("7-resumed")
}

// onlyLooks: a viewer sees the same, has no buttons that change anything, and is refused without them.
func (h *harbour) onlyLooks(t *testing.T, b *browser.Browser) {
	v := look(t, b, h.gateway, browser.View{Width: 1600, Height: 1000, Dark: true}, viewerToken)
	v.wait(`document.querySelectorAll('#tunnels tr.tenant').length === 2`)
	assert.Empty(t, v.texts(".backend .segments button"))
	v.press("#tunnels-panel header", "Unfold all")
	v.press("#tunnels tr.tunnel", h.shop.tunnelID(t))
	v.wait(`document.querySelectorAll('#drawer .station').length === 3`)
	for _, text := range v.texts("#drawer button") {
		assert.False(t, strings.HasPrefix(text, "End"), text)
	}
	v.photograph("8-viewer")
	said := seen[string](v, fmt.Sprintf(`fetch('api/backends/flaky/breaker', { method: 'PUT', headers: { Authorization: 'Bearer %s', 'Content-Type': 'application/json' }, body: '{"mode":"open"}' }).then(async (r) => r.status + ' ' + (await r.json()).code)`, viewerToken))
	assert.Equal(t, "403 "+errs.RoleForbidden.String(), said)
	acts := h.changes(t)
	require.Len(t, acts, 3)
	refused := acts[2]
	assert.Equal(t, []string{"victor", "refused", errs.RoleForbidden.String()}, []string{refused.Actor, refused.Result, refused.Code})
}

// changes are the requests to the admin API, in the audit log, that would have changed something.
func (h *harbour) changes(t *testing.T) (list []act) {
	t.Helper()
	for _, a := range recordedActs(t, h.gatewayConfig.Audit.File, "administer") {
		if !strings.HasPrefix(a.Target, "GET ") {
			list = append(list, a)
		}
	}
	return list
}
