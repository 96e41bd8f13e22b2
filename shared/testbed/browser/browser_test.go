package browser_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/shared/testbed/browser"
)

const waitFor, tick = 30 * time.Second, 10 * time.Millisecond

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, policy, body string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if policy != "" {
			w.Header().Set("Content-Security-Policy", policy)
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A harness that sees nothing would let every test of a page pass: what must be noticed is noticed here.
func TestWhatAPageDoesIsSeen(t *testing.T) {
	b := browser.New(t)

	t.Run("clean", func(t *testing.T) {
		tab := b.NewTab(t, browser.View{Width: 390, Height: 700, Dark: true})
		require.NoError(t, tab.Go(serve(t, "", `<!doctype html><link rel="icon" href="data:,"><title>fine</title><p id="p">text</p><button onclick="p.textContent='clicked'">b</button>`)))
		require.NoError(t, tab.Do(chromedp.Click(chromedp.CSS("button"))))
		require.NoError(t, tab.Wait(`document.getElementById('p').textContent === 'clicked'`))
		width, err := browser.Eval[int](tab, `matchMedia('(prefers-color-scheme: dark)').matches ? innerWidth : -1`)
		require.NoError(t, err)
		assert.Equal(t, 390, width)
		assert.Empty(t, tab.Complaints())
		file := filepath.Join(t.TempDir(), "page.png")
		require.NoError(t, tab.Screenshot(file, true))
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, "\x89PNG", string(raw[:4]))
	})
	t.Run("exception", func(t *testing.T) {
		tab := b.NewTab(t, browser.View{})
		require.NoError(t, tab.Go(serve(t, "", `<script>setTimeout(() => { document.title = 'thrown'; throw new Error('boom') })</script>`)))
		require.NoError(t, tab.Wait(`document.title === 'thrown'`))
		require.NotEmpty(t, tab.Complaints())
		assert.Contains(t, tab.Complaints()[0].Text, "boom")
	})
	t.Run("policy", func(t *testing.T) {
		tab := b.NewTab(t, browser.View{})
		require.NoError(t, tab.Go(serve(t, "default-src 'none'", `<p style="color: red">x</p>`)))
		require.Eventually(t, func() bool { return len(tab.Complaints()) > 0 }, waitFor, tick)
		assert.Contains(t, tab.Complaints()[0].Text, "style-src")
	})
	t.Run("elsewhere", func(t *testing.T) {
		tab := b.NewTab(t, browser.View{})
		home := serve(t, "", `<!doctype html><img src="http://fairlead.example/pixel.png" onerror="document.title='unreachable'">`)
		require.NoError(t, tab.Go(home))
		require.NoError(t, tab.Wait(`document.title === 'unreachable'`), "nothing outside this machine can be reached")
		assert.Equal(t, []string{"http://fairlead.example/pixel.png"}, tab.Elsewhere(home))
	})
	t.Run("tabs share nothing", func(t *testing.T) {
		home := serve(t, "", `<!doctype html>`)
		one, two := b.NewTab(t, browser.View{}), b.NewTab(t, browser.View{})
		require.NoError(t, one.Go(home))
		_, err := browser.Eval[string](one, `localStorage.setItem('k', 'v'), localStorage.k`)
		require.NoError(t, err)
		require.NoError(t, two.Go(home))
		kept, err := browser.Eval[bool](two, `'k' in localStorage`)
		require.NoError(t, err)
		assert.False(t, kept)
	})
}
