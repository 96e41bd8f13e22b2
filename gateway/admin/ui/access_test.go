package ui_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/browser"
)

func (v *visitor) signIn(token string) {
	v.t.Helper()
	v.wait(`document.getElementById('signin').open`)
	require.NoError(v.t, v.Do(chromedp.SendKeys(chromedp.CSS("#token"), token+kb.Enter)))
}

func TestSigningIn(t *testing.T) {
	g := serve(t, "", busy())
	g.set(func(g *gateway) { g.guarded = true })
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(`document.getElementById('signin').open && document.activeElement.id === 'token'`)
	assert.Equal(t, "signed out", v.text("#link"))
	assert.Empty(t, v.texts("#tunnels tr.tenant"), "nothing is shown before")
	v.signIn("wrong-token-0000000000")
	v.wait(`document.getElementById('signin-error').textContent.includes('FL-A208 the admin token is missing or wrong')`)
	v.signIn(viewer)
	v.wait(loaded)
	assert.Equal(t, `{"fairlead-token":"`+viewer+`"}`, eval[string](v, `JSON.stringify(sessionStorage)`), "it is in this tab's storage")
	assert.Equal(t, 0, eval[int](v, `localStorage.length + document.cookie.length`), "and nowhere else")
	assert.NotContains(t, eval[string](v, `document.documentElement.outerHTML + document.getElementById('token').value`), viewer)

	require.NoError(t, v.Do(chromedp.Reload()))
	v.wait(loaded)
	v.click("#sign")
	v.wait(`document.getElementById('signin').open && sessionStorage.length === 0`)
	g.set(func(g *gateway) { assert.Empty(t, g.headers["Authorization"]) })
	v.signIn(operator)
	v.wait(loaded)
	g.set(func(g *gateway) { g.data.tunnels, g.guarded = g.data.tunnels[:1], true })
	v.wait(`document.getElementById('tunnels-sum').textContent.startsWith('1 tunnel,')`)
}

// choose presses a button of a backend's breaker.
func (v *visitor) choose(backend, mode string) {
	v.t.Helper()
	v.press(fmt.Sprintf(".backend[data-name=%s] .segments", backend), mode)
	v.wait(`document.getElementById('confirm').open`)
}

func TestChangingABreaker(t *testing.T) {
	g := serve(t, "", busy())
	g.set(func(g *gateway) { g.guarded = true })
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.signIn(viewer)
	v.wait(loaded)
	v.choose("git", "Open")
	assert.Contains(t, v.text("#confirm"), "Open the breaker of git?")
	v.press("#confirm", "Cancel")
	v.wait(`!document.getElementById('confirm').open`)
	assert.Empty(t, g.acts(), "nothing is done without confirmation")
	v.choose("git", "Open")
	v.press("#confirm", "Open it")
	v.wait(`document.getElementById('notices').textContent.includes("Not done. FL-A213 the viewer's token may look only")`)
	assert.Empty(t, g.acts())

	v.click("#sign")
	v.signIn(operator)
	v.wait(loaded)
	v.choose("git", "Open")
	v.press("#confirm", "Open it")
	v.wait(`document.querySelector('.backend[data-name=git] .badge').textContent === 'open' && document.getElementById('backends-sum').textContent.startsWith('2 breakers open')`)
	assert.Contains(t, v.text(".backend[data-name=git] .why"), "forced open by an operator")
	v.choose("git", "Auto")
	v.press("#confirm", "Set to auto")
	v.wait(`document.querySelector('.backend[data-name=git] .badge').textContent === 'closed'`)
	v.choose("logs", "Close")
	v.press("#confirm", "Close it")
	v.wait(`document.querySelector('.backend[data-name=logs] .badge').textContent === 'closed'`)
	assert.Equal(t, []string{`PUT /api/backends/git/breaker {"mode":"open"}`, `PUT /api/backends/git/breaker {"mode":"auto"}`, `PUT /api/backends/logs/breaker {"mode":"closed"}`}, g.acts())
}

func TestEndingATunnel(t *testing.T) {
	g := serve(t, "", busy())
	id := g.data.tunnels[3]["id"].(string)
	v := visit(t, browser.New(t), g, browser.View{}, "#tunnel="+id)
	v.wait(`document.querySelector('#drawer .station')`)
	v.press("#drawer", "End this tunnel…")
	v.wait(`document.getElementById('confirm').open`)
	v.press("#confirm", "End the tunnel")
	v.wait(`document.querySelector('#drawer .gone:not([hidden])')`)
	assert.Equal(t, []string{"DELETE /api/tunnels/" + id + " "}, g.acts())
	assert.False(t, eval[bool](v, `[...document.querySelectorAll('#drawer button')].some((b) => b.checkVisibility() && b.textContent.includes('End'))`))
}

func TestLostAndBack(t *testing.T) {
	g := serve(t, "", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	g.set(func(g *gateway) { g.down = true })
	v.wait(`document.getElementById('link').dataset.link === 'lost' && document.getElementById('link').textContent.includes('trying again')`)
	assert.Contains(t, eval[string](v, `document.title`), "lost")
	assert.Equal(t, fmt.Sprint(len(g.data.tunnels)), v.text("#tile-tunnels"), "what was known stays")
	assert.NotEmpty(t, v.texts("#tunnels tr.tenant"))
	g.set(func(g *gateway) { g.down, g.started = false, time.Now() })
	v.wait(`document.getElementById('link').dataset.link === 'live' && document.getElementById('notices').textContent.includes('The gateway is back after')`)
	v.wait(`document.getElementById('notices').textContent.includes('started anew')`)
	assert.Contains(t, v.text("#uptime"), "up ")
}

func TestAGatewayThatCountsEventsAnew(t *testing.T) {
	g := serve(t, "", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	g.set(func(g *gateway) {
		g.data.happened = []event{{time.Second, object{"kind": "drain", "text": "a new life"}}}
	})
	v.wait(`document.querySelectorAll('#events li').length === 1 && document.getElementById('events').textContent.includes('a new life')`)
}

func TestAnOlderGateway(t *testing.T) {
	g := serve(t, "", busy())
	g.set(func(g *gateway) {
		for _, what := range []string{"live", "events", "streams", "tenants", "replicas", "drain"} {
			g.without[what] = true
		}
		for _, one := range g.data.tunnels {
			delete(one, "sent_rate")
			delete(one, "received_rate")
			delete(one, "pod")
		}
		for _, one := range g.data.backends {
			for _, field := range []string{"failures", "last_failure", "last_failure_at", "retry_at", "up", "pools"} {
				delete(one, field)
			}
		}
	})
	v := visit(t, browser.New(t), g, browser.View{}, "#tunnel="+g.data.tunnels[0]["id"].(string))
	v.wait(`document.getElementById('instance').textContent === 'gw-old' && document.querySelector('#tunnels tr') && document.querySelector('.backend') && document.querySelector('#drawer .station')`)
	assert.Equal(t, "draining", v.text("#state"))
	assert.Equal(t, "3", v.text("#tile-tunnels"))
	assert.Equal(t, "–", v.text("#tile-latency"), "what is not told is not zero")
	v.wait(`document.getElementById('events-sum').textContent === 'This gateway does not report events.'`)
	v.wait(`document.getElementById('drawer').textContent.includes('This gateway does not report streams.')`)
	v.wait(`document.getElementById('banner-drain').textContent.includes('9\u00a0streams')`)
	assert.NotContains(t, v.text("#drawer"), "undefined")
	assert.NotContains(t, v.text("body"), "NaN")
	assert.False(t, eval[bool](v, `document.getElementById('replicas-panel').checkVisibility()`))
}

func TestListsInPages(t *testing.T) {
	b := browser.New(t)
	for _, links := range []bool{false, true} {
		g := serve(t, "/behind/a/proxy", busy())
		g.set(func(g *gateway) { g.pages, g.links = true, links })
		v := visit(t, b, g, browser.View{}, "#q=e")
		v.wait(loaded)
		v.wait(`document.getElementById('filter-count').textContent.includes('of %d tunnels') && document.getElementById('filter-count').textContent.includes('of %d streams')`, len(g.data.tunnels), len(g.data.streams))
	}
}

func TestNobodyLooks(t *testing.T) {
	g := serve(t, "", busy())
	b := browser.New(t)
	v, other := visit(t, b, g, browser.View{}, ""), visit(t, b, g, browser.View{}, "")
	v.wait(loaded)
	other.wait(loaded)
	look := func(hidden bool) {
		eval[bool](v, fmt.Sprintf(`(() => { Object.defineProperty(document, 'hidden', { value: %t, configurable: true }); document.dispatchEvent(new Event('visibilitychange')); return true })()`, hidden))
	}
	look(true)
	asked, begin := len(v.Requests()), len(other.Requests())
	require.Eventually(t, func() bool { return len(other.Requests()) > begin+8 }, time.Minute, 10*time.Millisecond, "one that is looked at asks on")
	assert.Len(t, v.Requests(), asked, "one that is not asks nothing")
	look(false)
	require.Eventually(t, func() bool { return len(v.Requests()) >= asked+6 }, time.Minute, 10*time.Millisecond)
	assert.Equal(t, "live", v.text("#link"))
}

func TestOnlyNewPointsAreAskedFor(t *testing.T) {
	g := serve(t, "", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	require.Eventually(t, func() bool { return g.count("/api/live") > 3 }, time.Minute, 10*time.Millisecond)
	g.set(func(g *gateway) {
		assert.GreaterOrEqual(t, g.points[0], 450)
		for _, n := range g.points[1:] {
			assert.Less(t, n, 60)
		}
	})
}
