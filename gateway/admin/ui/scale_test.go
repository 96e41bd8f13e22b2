package ui_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/browser"
)

// 5,000 tunnels and 20,000 streams: what is shown is bounded, is updated in place, and stays where it was.
func TestManyTunnels(t *testing.T) {
	g := serve(t, "", many(5000, 20000))
	v := visit(t, browser.New(t), g, browser.View{}, "")
	eval[bool](v, `(() => { window.longest = 0; new PerformanceObserver((l) => { for (const e of l.getEntries()) window.longest = Math.max(window.longest, e.duration) }).observe({ type: 'longtask', buffered: true }); return true })()`)
	v.wait(loaded)
	v.wait(`document.getElementById('tunnels-sum').textContent === '5,000 tunnels, 60 tenants'`)
	v.press("#tunnels-panel", "Unfold all")
	v.wait(`document.querySelectorAll('#tunnels tbody tr').length === 200`)
	assert.Equal(t, "Showing 200 of 5,060 rows", v.text("#tunnels-cap"))
	v.press("#tunnels-panel", "Show 200 more")
	v.wait(`document.querySelectorAll('#tunnels tbody tr').length === 400`)
	assert.Less(t, eval[int](v, `document.querySelectorAll('*').length`), 15000, "elements are bounded")
	assert.Len(t, v.texts("#events li"), min(100, len(g.data.happened)))

	eval[bool](v, `(() => { scrollTo(0, 4000); window.row = document.querySelectorAll('#tunnels tr.tunnel')[150]; window.row.mine = true; window.at = scrollY; return true })()`)
	begin := g.count("/api/tunnels")
	g.set(func(g *gateway) {
		for _, one := range g.data.tunnels {
			one["streams"] = 77
		}
	})
	v.wait(`window.row.cells[2].textContent === '77'`)
	assert.Greater(t, g.count("/api/tunnels"), begin)
	assert.True(t, eval[bool](v, `document.querySelectorAll('#tunnels tr.tunnel')[150].mine === true && scrollY === window.at`), "the same row, in the same place")

	last := g.data.tunnels[4999]["id"].(string)
	v.filter("id:" + last)
	v.wait(`document.querySelectorAll('#tunnels tr.tunnel').length === 1 && document.getElementById('filter-count').textContent === '1 of 5,000 tunnels, 4 of 20,000 streams'`)
	v.press("#tunnels tr.tenant", g.data.tunnels[4999]["tenant"].(string))
	v.wait(`document.querySelectorAll('#drawer .streams tbody tr').length === 200`)
	assert.Regexp(t, `^Showing 200 of \d+ streams`, v.text("#drawer .cap"))
	t.Logf("longest task: %.0f ms", eval[float64](v, `window.longest`))
	require.NoError(t, v.Screenshot(t.ArtifactDir()+"/many.png", false))
}
