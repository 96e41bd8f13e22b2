package ui_test

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/browser"
)

// visitor is a tab with the page of a gateway.
type visitor struct {
	*browser.Tab
	t *testing.T
	g *gateway
}

// loaded is when everything that the usual gateway tells is on the page.
const loaded = `document.querySelector('#tunnels tbody tr') && document.querySelector('.backend') && document.querySelector('.mark') && document.querySelector('#filter-count') &&
	document.getElementById('link').dataset.link === 'live' && [...document.querySelectorAll('.backend .facts')].some((f) => f.textContent.includes('stream'))`

// visit opens the page and, when the test ends, asserts what holds for every visit: the browser had nothing to complain
// about, no policy was violated, no hostile text became code, nothing was asked for elsewhere, and no secret was in an address.
func visit(t *testing.T, b *browser.Browser, g *gateway, view browser.View, fragment string) *visitor {
	t.Helper()
	v := &visitor{b.NewTab(t, view), t, g}
	require.NoError(t, v.Go(g.page()+fragment))
	t.Cleanup(func() {
		assert.Empty(t, v.Complaints())
		assert.Empty(t, v.Elsewhere(g.URL))
		assert.Equal(t, "undefined", eval[string](v, `typeof window.pwned`))
		for _, r := range append(v.Requests(), eval[string](v, `location.href`)) {
			assert.True(t, strings.HasPrefix(r, g.page()), "below the page's own path: %s", r)
			assert.NotContains(t, r, "token-0123456789")
		}
	})
	return v
}

func eval[T any](v *visitor, expression string) T {
	v.t.Helper()
	value, err := browser.Eval[T](v.Tab, expression)
	require.NoError(v.t, err, expression)
	return value
}

func (v *visitor) wait(expression string, args ...any) {
	v.t.Helper()
	require.NoError(v.t, v.Wait(fmt.Sprintf(expression, args...)))
}

func (v *visitor) click(selector string) {
	v.t.Helper()
	require.NoError(v.t, v.Do(chromedp.Click(chromedp.CSS(selector))), selector)
}

// press clicks the first button within a place that has this text.
func (v *visitor) press(within, text string) {
	v.t.Helper()
	found := eval[bool](v, fmt.Sprintf(`(() => { const b = [...document.querySelectorAll(%q)].find((b) => b.textContent.trim() === %q); b?.click(); return Boolean(b) })()`, within+" button", text))
	require.True(v.t, found, "no button %q in %s", text, within)
}

func (v *visitor) keys(keys string) {
	v.t.Helper()
	require.NoError(v.t, v.Do(chromedp.KeyEvent(keys)))
}

// slash presses / as a keyboard does: a page that takes the key for itself keeps the character from being typed.
func (v *visitor) slash() {
	v.t.Helper()
	require.NoError(v.t, v.Do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: "/", Code: "Slash", Text: "/"})
		return chromedp.Void{}, err
	}))
}

func (v *visitor) text(selector string) string {
	v.t.Helper()
	return eval[string](v, fmt.Sprintf(`document.querySelector(%q)?.innerText.replaceAll('\u00a0', ' ') ?? 'there is none'`, selector))
}

func (v *visitor) texts(selector string) []string {
	v.t.Helper()
	return eval[[]string](v, fmt.Sprintf(`[...document.querySelectorAll(%q)].map((e) => e.innerText.trim())`, selector))
}

func (v *visitor) filter(query string) {
	v.t.Helper()
	eval[bool](v, fmt.Sprintf(`(() => { const f = document.getElementById('filter'); f.value = %q; f.dispatchEvent(new Event('input')); return true })()`, query))
	v.wait(`new URLSearchParams(location.hash.slice(1)).get('q') === %q || (%q === '' && !location.hash.includes('q='))`, query, query)
}

// Verifies: R3.9
func TestThePageShowsWhatTheGatewayTells(t *testing.T) {
	g := serve(t, "/ops/fairlead", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	assert.Equal(t, "gw-7c9f-x2x4q serving v0.9.2 up 3 d 2 h", strings.Join(v.texts(".who > *"), " "))
	assert.Equal(t, fmt.Sprint(len(g.data.tunnels)), v.text("#tile-tunnels"))
	assert.Equal(t, fmt.Sprint(len(g.data.streams)), v.text("#tile-streams"))
	for tile, unit := range map[string]string{"opens": " /s", "errors": " %", "throughput": " MB/s", "latency": " ms", "pressure": " %"} {
		assert.True(t, strings.HasSuffix(v.text("#tile-"+tile), unit), "a figure with its unit: %q", v.text("#tile-"+tile))
	}
	assert.Equal(t, "refuses low priority", v.text("#tile-pressure + .muted"))
	for chart, words := range map[string][]string{"throughput": {"to clients", "from clients", "MB/s"}, "latency": {"p50", "p95", "p99", "ms"}, "opens": {"opens", "refused", "failed"},
		"tunnels": {"streams", "tunnels", "detached"}} {
		label := eval[string](v, fmt.Sprintf(`document.querySelector('#chart-%s .plot').getAttribute('aria-label')`, chart))
		for _, word := range words {
			assert.Contains(t, label, word)
		}
		painted := eval[int](v, fmt.Sprintf(`(() => { const c = document.querySelector('#chart-%s canvas'); return new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size })()`, chart))
		assert.Greater(t, painted, 10, "colours on the canvas of %s", chart)
	}

	states := map[string]string{"git": "closed", "bastion": "closed", "logs": "open", "wiki": "half-open", "reports": "closed"}
	for name, state := range states {
		assert.Equal(t, state, v.text(fmt.Sprintf(".backend[data-name=%s] .badge", name)), "the state is a word, not a colour only")
	}
	assert.Equal(t, []string{"logs", "wiki"}, v.texts(".backend b.name")[:2], "what needs attention comes first")
	assert.Contains(t, v.text(".backend[data-name=logs] .why"), "5 failures in a row")
	assert.Contains(t, v.text(".backend[data-name=logs] .why"), "FL-S402 the backend refused the connection")
	assert.Contains(t, v.text(".backend[data-name=logs] .why"), "probes ")
	assert.Contains(t, v.text(".backend[data-name=reports] .why"), "forced closed by olga")
	v.click(".backend[data-name=bastion] .fold")
	assert.Equal(t, []string{"data/warehouse", "payments/api", "search/indexer"}, v.texts(".backend[data-name=bastion] .pools td:first-child")[:3], "the busiest pools first")

	assert.Len(t, v.texts("#tunnels tr.tenant"), len(g.data.tenants))
	assert.Equal(t, "1 breaker open of 5", v.text("#backends-sum"))
	assert.True(t, strings.HasPrefix(eval[string](v, `document.title`), "⚠ 1 open"))
	assert.Len(t, v.texts("#strip .row"), 8)
	assert.Contains(t, v.text("#events"), "lost")
	assert.Contains(t, v.text("#events"), "FL-N107")
	assert.Contains(t, v.text("#events"), "unheard-of", "kinds of later gateways are shown too")
	title := eval[string](v, `document.querySelector('#events time').title`)
	assert.Regexp(t, `(CET|CEST|GMT\+[12]) · \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$`, title, "local time and UTC")
}

// Names are a stranger's to choose.
func TestHostileNamesAreText(t *testing.T) {
	g := serve(t, "", busy())
	var id string
	for _, one := range g.data.tunnels {
		if one["tenant"] == hostileTenant {
			id = one["id"].(string)
		}
	}
	v := visit(t, browser.New(t), g, browser.View{}, "#tunnel="+id)
	v.wait(loaded + ` && document.querySelector('#drawer .facts-list')`)
	v.press("#tunnels-panel header", "Unfold all")
	v.wait(`document.querySelectorAll('#tunnels tr.tunnel').length === %d`, len(g.data.tunnels))
	for _, bad := range []string{hostileTenant, hostileSubject, hostilePod} {
		assert.Contains(t, v.text("#drawer"), bad)
	}
	assert.Contains(t, v.text("#tunnels"), hostileTenant)
	assert.Contains(t, v.text("#tunnels"), hostilePod)
	assert.Contains(t, v.text("#tunnels"), `pay\u202estnem/api`, "what would turn the direction of text is spelt out")
	assert.Zero(t, eval[int](v, `document.querySelectorAll('[onerror], [onload], td img, td script, .drawer script, .drawer img').length`))
	v.filter(hostileTenant)
	v.wait(`document.querySelectorAll('#tunnels tr.tenant').length === 1`)
	v.press("#tunnels", hostileTenant)
	v.wait(`document.getElementById('drawer-title').textContent === %q`, hostileTenant)
	v.press("#drawer", "Filter by "+hostileTenant)
	v.wait(`document.getElementById('drawer').hidden && document.querySelectorAll('#tunnels tr.tenant').length === 1`)
}

// TestScreenshots takes pictures for people to look at: go test -artifacts -outputdir DIR.
func TestScreenshots(t *testing.T) {
	b, g := browser.New(t), serve(t, "", busy())
	one := g.data.tunnels[1]["id"]
	wide, narrow := browser.View{Width: 1280, Height: 900}, browser.View{Width: 390, Height: 844, Mobile: true}
	dark := func(v browser.View) browser.View { v.Dark = true; return v }
	for name, shot := range map[string]struct {
		view browser.View
		at   string
		do   string
	}{
		"wide-light": {wide, "", ""}, "wide-dark": {dark(wide), "", ""}, "full-hd": {browser.View{Width: 1920, Height: 1080}, "#sort=-sent", ""},
		"narrow-light": {narrow, "", ""}, "narrow-dark": {dark(narrow), "", ""}, "filtered": {wide, "#q=payments", ""},
		"narrow-events":  {narrow, "", `document.getElementById('events-panel').scrollIntoView()`},
		"narrow-tunnels": {dark(narrow), "#q=mail", `document.getElementById('tunnels-panel').scrollIntoView()`},
		"tunnel":         {wide, fmt.Sprintf("#q=payments&tunnel=%s", one), ""}, "tunnel-narrow": {dark(narrow), fmt.Sprintf("#tunnel=%s", one), ""},
		"stream": {dark(wide), fmt.Sprintf("#tunnel=%s&stream=3", one), ""}, "tenant": {wide, "#tenant=" + url.QueryEscape("ops/deploy"), ""},
		"confirm": {wide, "", `[...document.querySelectorAll('.backend[data-name=git] .segments button')][1].click()`},
		"pools":   {dark(wide), "", `document.querySelector('.backend[data-name=bastion] .fold').click(), scrollTo(0, 1e6)`},
		"unfold":  {browser.View{Width: 1600, Height: 1000}, "#sort=-received", `document.getElementById('expand').click(), scrollTo(0, 640)`},
	} {
		t.Run(name, func(t *testing.T) {
			v := visit(t, b, g, shot.view, shot.at)
			v.wait(loaded)
			if shot.do != "" {
				eval[bool](v, shot.do+`, true`)
			}
			require.NoError(t, v.Screenshot(filepath.Join(t.ArtifactDir(), name+".png"), false))
			assert.LessOrEqual(t, eval[int](v, `document.documentElement.scrollWidth`), shot.view.Width, "nothing sticks out sideways")
		})
	}
}

func TestByKeyboard(t *testing.T) {
	g := serve(t, "", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	unnamed := eval[[]string](v, `[...document.querySelectorAll('button, input, [role=img], dialog, section')].filter((e) => e.checkVisibility() && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML.slice(0, 90))`)
	assert.Empty(t, unnamed, "everything that can be used has a name")
	v.slash()
	v.wait(`document.activeElement.id === 'filter'`)
	v.keys("payments")
	v.wait(`document.querySelectorAll('#tunnels tr.tenant').length === 2`)
	assert.Equal(t, "filter", eval[string](v, `document.activeElement.id`))

	eval[bool](v, `document.querySelector('#tunnels tr.tunnel button').focus(), true`)
	v.keys(kb.Enter)
	v.wait(`!document.getElementById('drawer').hidden && document.activeElement.id === 'drawer'`)
	v.keys(kb.Escape)
	v.wait(`document.getElementById('drawer').hidden && document.activeElement.closest('tr.tunnel')`)

	eval[bool](v, `document.querySelector('.backend[data-name=git] .segments button:nth-child(2)').focus(), true`)
	v.keys(kb.Enter)
	v.wait(`document.getElementById('confirm').open && document.activeElement.id === 'confirm-no'`)
	v.keys(kb.Enter)
	v.wait(`!document.getElementById('confirm').open`)
	assert.Empty(t, g.acts(), "the safe answer is the one at hand")
}
