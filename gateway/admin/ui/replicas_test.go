package ui_test

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed/browser"
)

// spread is when the replicas are on the page, too.
const spread = loaded + ` && document.querySelectorAll('.spread tbody tr').length > 1`

func TestReplicasAreShown(t *testing.T) {
	g := serve(t, "", several())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(spread)
	assert.Equal(t, "4 replicas, 1 draining", v.text("#replicas-sum"))
	rows := v.texts(".spread tbody tr")
	require.Len(t, rows, 4)
	for i, words := range [][]string{{"gw-7c9f-b8dkk", "58", "401", "v0.9.2"}, {"gw-7c9f-x2x4q", "this one", fmt.Sprint(len(g.data.tunnels))}, {"gw-7c9f-zz9r4", "draining", "12", "40"}, {hostileReplica, "49"}} {
		for _, word := range words {
			assert.Contains(t, rows[i], word)
		}
		assert.Equal(t, i == 1, strings.Contains(rows[i], "this one"), rows[i])
		assert.Equal(t, i == 2, strings.Contains(rows[i], "draining"), rows[i])
	}
	widths := eval[[]float64](v, `[...document.querySelectorAll('.spread .share:nth-child(3) i')].map((i) => i.offsetWidth / i.parentNode.offsetWidth)`)
	require.Len(t, widths, 4)
	most := float64(max(len(g.data.streams), 401))
	for i, n := range []int{401, len(g.data.streams), 40, 320} {
		assert.InDelta(t, float64(n)/most, widths[i], .03, "bars are as long as what they stand for")
	}
	facts := v.text("#replicas .shared")
	for _, said := range []string{"redis for 1 d 2 h", "212 here", "61 relayed", "4 refused", "3 lost", fmt.Sprint(len(g.data.tunnels)) + " held", "1 lost", "3 lanes, 289 MB out, 5.5 MB in"} {
		assert.Contains(t, facts, said)
	}
	assert.Equal(t, "up", v.text("#replicas .shared .badge"))
	assert.Len(t, v.texts(".relays tbody tr"), 3)
	assert.Contains(t, v.texts(".relays tbody tr")[1], "gw-7c9f-zz9r4")
	assert.False(t, eval[bool](v, `document.getElementById('banners').checkVisibility()`), "there is nothing to warn of")

	g.set(func(g *gateway) {
		list := []object{}
		for i := range 80 {
			list = append(list, object{"id": fmt.Sprint(i), "name": fmt.Sprintf("gw-%02d", i), "tunnels": i})
		}
		relays := []object{}
		for i := range 200 {
			relays = append(relays, relay(i, "gw-01"))
		}
		g.data.cluster["replicas"], g.data.cluster["relays"], g.data.cluster["relays_total"] = list, relays, 1500
	})
	v.wait(`document.querySelectorAll('.spread tbody tr').length === 50 && document.querySelectorAll('.relays tbody tr').length === 20`)
	assert.Contains(t, v.text("#replicas"), "Showing 50 of 80 replicas")
	assert.Contains(t, v.text("#replicas"), "Showing the oldest 20 of 1,500")
	assert.NotContains(t, v.text("#replicas"), "undefined")
}

func TestATunnelThroughAnotherReplica(t *testing.T) {
	g := serve(t, "", several())
	one := g.data.tunnels[1]
	v := visit(t, browser.New(t), g, browser.View{Width: 1600, Height: 900}, fmt.Sprintf("#q=%s&tunnel=%s", url.QueryEscape("via:gw-"), one["id"]))
	v.wait(`document.querySelectorAll('#drawer .station').length === 4`)
	v.wait(`document.querySelectorAll('#tunnels tr.tunnel').length === 2`)
	stations := v.texts("#drawer .station")
	assert.Contains(t, stations[1], hostileReplica)
	assert.Contains(t, stations[1], "relays the lane")
	assert.Contains(t, stations[2], "gw-7c9f-x2x4q")
	assert.Contains(t, stations[2], "this one")
	assert.Contains(t, v.text("#tunnels"), "via gw-7c9f-b8dkk")
	assert.Contains(t, v.text("#tunnels"), "2 relayed")
	g.set(func(*gateway) { one["via"] = "" }) // it has come back directly
	v.wait(`document.querySelectorAll('#drawer .station').length === 3`)
	assert.Equal(t, []string{"#i-sidecar", "#i-replica", "#i-backend"}, eval[[]string](v, `[...document.querySelectorAll('#drawer .station use')].map((u) => u.getAttribute('href'))`))
}

func TestASingleGatewayHasNoReplicas(t *testing.T) {
	g := serve(t, "", busy())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(loaded)
	require.Eventually(t, func() bool { return g.count("/api/replicas") > 1 }, time.Minute, 10*time.Millisecond)
	assert.False(t, eval[bool](v, `document.getElementById('replicas-panel').checkVisibility() || document.getElementById('banners').checkVisibility()`))
	assert.Zero(t, g.count("/api/drain"), "nobody asks about a drain that there is not")
}

func TestAStoreThatIsAway(t *testing.T) {
	g := serve(t, "", degraded())
	v := visit(t, browser.New(t), g, browser.View{}, "")
	v.wait(spread)
	said := v.text("#banner-store")
	for _, words := range []string{"Degraded: the store that replicas share cannot be used for ", "Works as before: open tunnels and streams, new ones", "its own share of the limits",
		"Circuits and revocations count only at the replica where they are made", "known last", "FL-S431 dial tcp 10.1.0.9:6379: connection refused <b>", "nothing has to be restarted"} {
		assert.Contains(t, said, words)
	}
	assert.Equal(t, "degraded", v.text("#replicas .shared .badge"))
	assert.Contains(t, v.text("#replicas-sum"), "as they were known last")
	g.set(func(g *gateway) {
		g.data.cluster["store"] = object{"kind": "redis", "up": true, "since": time.Now()}
	})
	v.wait(`!document.getElementById('banner-store').checkVisibility() && document.querySelector('#replicas .shared .badge').textContent === 'up'`)
	assert.Equal(t, "4 replicas, 1 draining", v.text("#replicas-sum"))
}

// Verifies: R8.10
func TestADrainIsFollowed(t *testing.T) {
	g, b := serve(t, "", several()), browser.New(t)
	v := visit(t, b, g, browser.View{}, "")
	v.wait(spread)
	assert.Zero(t, g.count("/api/drain"))
	g.set(func(g *gateway) { g.state, g.data.drain = "draining", drains(time.Hour) })
	v.wait(`document.getElementById('banner-drain').textContent.includes('12\u00a0tunnels')`)
	said := v.text("#banner-drain")
	for _, words := range []string{"Draining: sidecars move to other replicas", "12 tunnels and 87 streams left", "48 tunnels moved", "what is left is cut in ", "because of signal_term"} {
		assert.Contains(t, said, words)
	}
	assert.Equal(t, "draining", v.text("#state"))
	bar := `document.querySelector('#banner-drain [role=progressbar]')`
	assert.Equal(t, "48 of 60", eval[string](v, bar+`.ariaValueNow + ' of ' + `+bar+`.ariaValueMax`))
	assert.InDelta(t, 48./60, eval[float64](v, bar+`.firstChild.offsetWidth / `+bar+`.offsetWidth`), .02)

	g.set(func(g *gateway) {
		g.data.drain = drains(-time.Second)
		g.data.drain["phase"], g.data.drain["tunnels"], g.data.drain["streams"], g.data.drain["ended"] = "ending", 0, 1, 5
	})
	v.wait(`document.getElementById('banner-drain').textContent.includes('the deadline is over')`)
	said = v.text("#banner-drain")
	for _, words := range []string{"0 tunnels and 1 stream left", "5 streams cut at the deadline", "the deadline was at "} {
		assert.Contains(t, said, words)
	}
	g.set(func(g *gateway) { g.without["drain"] = true })
	older := visit(t, b, g, browser.View{}, "")
	older.wait(`document.getElementById('banner-drain').checkVisibility()`)
	assert.Contains(t, older.text("#banner-drain"), fmt.Sprintf("%d tunnels and %d streams left", len(g.data.tunnels), len(g.data.streams)), "one that does not tell how far it is")
	assert.NotContains(t, older.text("#banner-drain"), "undefined")
}

// TestScreenshotsOfReplicas takes pictures for people to look at: go test -artifacts -outputdir DIR.
func TestScreenshotsOfReplicas(t *testing.T) {
	b := browser.New(t)
	calm, away, leaving := serve(t, "", several()), serve(t, "", degraded()), serve(t, "", several())
	leaving.set(func(g *gateway) { g.state, g.data.drain = "draining", drains(25*time.Second) })
	wide, narrow := browser.View{Width: 1280, Height: 900}, browser.View{Width: 390, Height: 844, Mobile: true}
	dark := func(v browser.View) browser.View { v.Dark = true; return v }
	panel := `document.getElementById('replicas-panel').scrollIntoView()`
	for name, shot := range map[string]struct {
		g    *gateway
		view browser.View
		do   string
	}{
		"replicas-wide": {calm, wide, panel}, "replicas-phone": {calm, dark(narrow), panel}, "degraded-wide": {away, dark(wide), panel}, "degraded-phone": {away, narrow, ""},
		"draining-wide": {leaving, dark(wide), ""}, "draining-phone": {leaving, narrow, ""},
		"via": {calm, wide, fmt.Sprintf(`location.hash = 'q=via:gw-&tunnel=%s'`, calm.data.tunnels[1]["id"])},
	} {
		t.Run(name, func(t *testing.T) {
			v := visit(t, b, shot.g, shot.view, "")
			v.wait(spread)
			if strings.HasPrefix(name, "draining") {
				v.wait(`document.getElementById('banner-drain').textContent.includes('moved')`)
			}
			if shot.do != "" {
				eval[bool](v, shot.do+`, true`)
			}
			if name == "via" {
				v.wait(`document.querySelectorAll('#drawer .station').length === 4`)
			}
			require.NoError(t, v.Screenshot(filepath.Join(t.ArtifactDir(), name+".png"), false))
			assert.LessOrEqual(t, eval[int](v, `document.documentElement.scrollWidth`), shot.view.Width, "nothing sticks out sideways")
			assert.Zero(t, eval[int](v, `document.querySelectorAll('[onerror], #replicas img, #banners b b').length`))
		})
	}
}
