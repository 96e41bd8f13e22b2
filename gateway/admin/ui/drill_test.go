package ui_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/browser"
)

// expect counts what of a gateway's lists a test should find.
func expect(list []object, want func(object) bool) (n int) {
	for _, o := range list {
		if want(o) {
			n++
		}
	}
	return n
}

func TestTheFilterAppliesEverywhere(t *testing.T) {
	g := serve(t, "", busy())
	b := browser.New(t)
	v := visit(t, b, g, browser.View{}, "")
	v.wait(loaded)
	tunnels, streams := g.data.tunnels, g.data.streams
	using := map[any]bool{} // tunnels with a stream by the route orders-db
	for _, s := range streams {
		using[s["tunnel"]] = using[s["tunnel"]] || s["route"] == "orders-db"
	}
	starts := func(field, prefix string) func(object) bool {
		return func(o object) bool { return strings.HasPrefix(fmt.Sprint(o[field]), prefix) }
	}
	one := tunnels[20]
	for query, want := range map[string][2]int{
		"tenant:payments/":                              {expect(tunnels, starts("tenant", "payments/")), expect(streams, starts("tenant", "payments/"))},
		"PAYMENTS/LEDGER":                               {expect(tunnels, starts("tenant", "payments/ledger")), expect(streams, starts("tenant", "payments/ledger"))},
		"state:detached":                                {expect(tunnels, starts("state", "detached")), -1},
		"route:orders-db":                               {expect(tunnels, func(o object) bool { return using[o["id"]] }), expect(streams, starts("route", "orders-db"))},
		"pod:" + fmt.Sprint(one["pod"]):                 {1, expect(streams, starts("tunnel", one["id"].(string)))},
		"id:" + one["id"].(string):                      {1, expect(streams, starts("tunnel", one["id"].(string)))},
		"tenant:search -tenant:indexer route:orders-db": {expect(tunnels, func(o object) bool { return o["tenant"] == "search/query" && using[o["id"]] }), -1},
		`subject:"no such"`:                             {0, 0},
	} {
		v.filter(query)
		v.wait(`document.getElementById('filter-count').textContent.startsWith('%d of %d tunnels')`, want[0], len(tunnels))
		if want[1] >= 0 {
			assert.Contains(t, v.text("#filter-count"), fmt.Sprintf(", %d of %d streams", want[1], len(streams)), query)
		}
		assert.True(t, strings.HasPrefix(v.text("#tunnels-sum"), fmt.Sprint(want[0])+" tunnel"), "%s: %s", query, v.text("#tunnels-sum"))
	}

	v.filter("tenant:payments/api")
	v.wait(`document.querySelectorAll('#tunnels tr.tenant').length === 1`)
	assert.Equal(t, []string{"payments/api"}, v.texts("#strip .row > :first-child"), "the timeline")
	for _, line := range v.texts("#events li") {
		assert.Contains(t, line, "payments/api", "the list of events")
	}
	assert.Equal(t, fmt.Sprint(expect(tunnels, starts("tenant", "payments/api"))), fmt.Sprint(len(v.texts("#tunnels tr.tunnel"))), "a few tunnels found are unfolded at once")
	assert.NotContains(t, v.texts(".backend b.name"), "reports", "backends that it does not use")
	v.filter("route:wiki")
	v.wait(`document.querySelectorAll('.backend').length === 1`)
	assert.Equal(t, []string{"wiki"}, v.texts(".backend b.name"))
	v.filter("")
	v.wait(`document.querySelectorAll('#tunnels tr.tenant').length === %d`, len(g.data.tenants))
	v.click("#legend [data-kind=lost]")
	v.wait(`document.getElementById('filter').value === 'kind:lost' && new Set([...document.querySelectorAll('#events .kind')].map((k) => k.textContent)).size === 1`)
	v.click("#legend [data-kind=lost]")
	v.wait(`document.getElementById('filter').value === ''`)

	link := visit(t, b, g, browser.View{}, "#q="+url.QueryEscape("tenant:shop -cart")+"&sort=-sent")
	link.wait(`document.querySelector('tr.tenant')`)
	assert.Equal(t, "tenant:shop -cart", eval[string](link, `document.getElementById('filter').value`), "an address holds the filter")
	assert.Equal(t, []string{"shop/web"}, link.texts("#tunnels tr.tenant td:first-child"))
	assert.Equal(t, "descending", eval[string](link, `document.querySelector('th.col-sent').getAttribute('aria-sort')`))
}

func TestSpacesCanBeTyped(t *testing.T) {
	v := visit(t, browser.New(t), serve(t, "", busy()), browser.View{}, "")
	v.wait(loaded)
	require.NoError(t, v.Do(chromedp.SendKeys(chromedp.CSS("#filter"), "payments ")))
	v.wait(`location.hash === '#q=payments'`)
	require.NoError(t, v.Do(chromedp.SendKeys(chromedp.CSS("#filter"), "route:git")))
	v.wait(`location.hash === '#q=payments+route%%3Agit'`)
}

func TestSorting(t *testing.T) {
	v := visit(t, browser.New(t), serve(t, "", busy()), browser.View{Width: 1600, Height: 900}, "")
	v.wait(loaded)
	names := v.texts("#tunnels tr.tenant td:first-child")
	names = slices.DeleteFunc(names, func(name string) bool { return strings.Contains(name, `\u`) }) // sorted by what it is, not by how it is shown
	assert.Len(t, names, 12)
	assert.IsNonDecreasing(t, names)
	for column, cell := range map[string]int{"streams": 2, "resumes": 6} {
		for _, order := range []string{"descending", "ascending"} {
			v.click("th.col-" + column + " button")
			v.wait(`document.querySelector('th.col-%s').getAttribute('aria-sort') === %q`, column, order)
			values := eval[[]int](v, fmt.Sprintf(`[...document.querySelectorAll('#tunnels tr.tenant')].map((r) => Number(r.cells[%d].textContent))`, cell))
			if order == "descending" {
				assert.IsNonIncreasing(t, values, column)
			} else {
				assert.IsNonDecreasing(t, values, column)
			}
		}
	}
}

// Verifies: R3.9
func TestFromATenantToTheWayOfAStream(t *testing.T) {
	g := serve(t, "", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	v.press("#tunnels", "mail/relay")
	v.wait(`document.getElementById('drawer-title').textContent === 'mail/relay'`)
	assert.Contains(t, v.text("#drawer .facts-list"), "Streams\n54 of 400")
	assert.Contains(t, v.text("#drawer .facts-list"), "Open limit\n600 /min, 88 left")
	v.press("#drawer header", "×")
	v.wait(`document.getElementById('drawer').hidden`)

	eval[bool](v, `[...document.querySelectorAll('tr.tenant')].find((r) => r.textContent.includes('mail/relay')).querySelector('.fold').click(), true`)
	v.wait(`document.querySelectorAll('tr.tunnel').length === %d`, expect(g.data.tunnels, func(o object) bool { return o["tenant"] == "mail/relay" }))
	s := g.data.streams[expectAt(g.data.streams, func(o object) bool { return o["tenant"] == "mail/relay" && o["backend"] == "logs" })]
	id := s["tunnel"].(string)
	eval[bool](v, fmt.Sprintf(`[...document.querySelectorAll('tr.tunnel button')].find((b) => b.textContent.includes(%q)).click(), true`, id))
	v.wait(`document.getElementById('drawer-title').textContent === %q`, id)
	assert.Contains(t, v.text("#drawer .path"), "from 10.")
	assert.Len(t, v.texts("#drawer .streams tbody tr"), expect(g.data.streams, func(o object) bool { return o["tunnel"] == id }))
	assert.Equal(t, "true", eval[string](v, `document.querySelector('tr.tunnel[aria-selected]').getAttribute('aria-selected')`))

	v.press("#drawer .streams", fmt.Sprint(s["id"]))
	v.wait(`location.hash.includes('stream=%v') && document.querySelector("#drawer header .muted").textContent === "Stream"`, s["id"])
	stations := v.texts("#drawer .station")
	require.Len(t, stations, 3)
	for i, words := range [][]string{{"Sidecar", s["pod"].(string), "app " + s["app"].(string), "client " + s["client"].(string)}, {"Replica", "gw-7c9f-x2x4q", "this one"},
		{"Backend", "logs", "open", "logs.internal:22", "route logs"}} {
		for _, word := range words {
			assert.Contains(t, stations[i], word)
		}
	}
	hops := v.texts("#drawer .hop:not([hidden])")
	require.Len(t, hops, 2)
	assert.Contains(t, hops[0], id)
	assert.Contains(t, hops[0], "/s in")
	assert.Contains(t, hops[1], "passthrough")
	assert.Contains(t, hops[1], "opened in ")

	require.NoError(t, v.Do(chromedp.NavigateBack()))
	v.wait(`document.getElementById('drawer-title').textContent === %q`, id)

	v.press("#tunnels", "ops/deploy")
	v.wait(`document.getElementById('drawer-title').textContent === 'ops/deploy'`)
	v.press("#drawer .streams", "plain/plain-1")
	v.wait(`document.querySelectorAll('#drawer .station').length === 3`)
	assert.Contains(t, v.text("#drawer .path"), "plain WebSocket", "a stream without a tunnel has a way, too")
}

// expectAt is the index of the first that a test looks for.
func expectAt(list []object, want func(object) bool) int {
	for i, o := range list {
		if want(o) {
			return i
		}
	}
	return -1
}

func TestATunnelThatIsGone(t *testing.T) {
	v := visit(t, browser.New(t), serve(t, "", busy()), browser.View{}, "#tunnel=t-nowhere")
	v.wait(`document.querySelector('#drawer .gone:not([hidden])')`)
	assert.Contains(t, v.text("#drawer"), "This tunnel is not here")
}
