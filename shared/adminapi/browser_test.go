package adminapi_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/adminapi"
	"fairlead/shared/testbed/browser"
)

// A page of another program on the same machine sends what browsers let it send, by a real browser: all of it arrives at
// the guard, and nothing behind it. The page of the program itself may ask.
func TestAPageOfAnotherOriginReachesNothing(t *testing.T) {
	var reached atomic.Int64
	count := func(w http.ResponseWriter, _ *http.Request) { reached.Add(1); adminapi.Done(w, http.StatusOK) }
	home := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!doctype html><title>own</title>")
	}
	a := serve(t, func(c *adminapi.Config) {
		c.Routes = func(mux *http.ServeMux) {
			mux.HandleFunc("/api/it", count)
			mux.HandleFunc("GET /{$}", home)
		}
	})
	evil := httptest.NewServer(http.HandlerFunc(home))
	t.Cleanup(evil.Close)
	target := "http://" + a.Addr().String() + "/api/it"
	attack := func(address string) string {
		return fmt.Sprintf(`(async () => {
			const u = %q, settle = (p) => p.then(() => 'answered', () => 'failed');
			const load = (tag, key) => new Promise((done) => { const e = document.createElement(tag); e.onload = e.onerror = done; e[key] = u; document.body.append(e); });
			await Promise.all([load('img', 'src'), load('script', 'src'), load('iframe', 'src')]);
			for (const method of ['GET', 'POST']) await settle(fetch(u, { method, mode: 'no-cors' }));
			await settle(fetch(u));
			await settle(fetch(u, { method: 'POST', body: 'debug' }));
			navigator.sendBeacon(u, 'debug');
			return settle(fetch(u, { method: 'POST', mode: 'no-cors', body: 'debug', headers: { 'Content-Type': 'text/plain' } }));
		})()`, address)
	}
	tab := browser.New(t).NewTab(t, browser.View{})
	require.NoError(t, tab.Go(evil.URL))
	said, err := browser.Eval[string](tab, attack(target))
	require.NoError(t, err)
	assert.Equal(t, "answered", said, "opaque, but it was sent and answered")
	sent := 0
	for _, r := range tab.Requests() {
		if strings.HasPrefix(r, target) {
			sent++
		}
	}
	assert.GreaterOrEqual(t, sent, 8, "%v", tab.Requests())
	assert.Zero(t, reached.Load())

	require.NoError(t, tab.Go("http://"+a.Addr().String()+"/"))
	_, err = browser.Eval[string](tab, `fetch('/api/it', { method: 'POST' }).then((r) => String(r.status))`)
	require.NoError(t, err)
	assert.EqualValues(t, 1, reached.Load(), "its own page may")
}
