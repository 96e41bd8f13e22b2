package ui_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/admin/ui"
	"fairlead/shared/webui"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ask(method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	ui.Handler().ServeHTTP(w, r)
	return w.Result()
}

// files calls with each of the static files, by its path below static.
func files(t *testing.T, with func(name, text string)) {
	t.Helper()
	for _, from := range []fs.FS{os.DirFS("."), webui.Files()} {
		require.NoError(t, fs.WalkDir(from, "static", func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			raw, err := fs.ReadFile(from, name)
			with(strings.TrimPrefix(name, "static/"), string(raw))
			return err
		}))
	}
}

func TestFilesAreServed(t *testing.T) {
	kinds := map[string]string{".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
		".md": "text/plain; charset=utf-8", ".LICENSE": "text/plain; charset=utf-8"}
	files(t, func(name, text string) {
		path := "/ui/" + name
		if name == "index.html" {
			path = "/"
		}
		resp := ask("GET", path)
		assert.Equal(t, 200, resp.StatusCode, path)
		assert.EqualValues(t, len(text), resp.ContentLength, path)
		assert.Equal(t, kinds[filepath.Ext(name)], resp.Header.Get("Content-Type"), path)
		assert.Equal(t, webui.Policy, resp.Header.Get("Content-Security-Policy"), path)
		assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"), path)
		assert.Equal(t, "no-cache", resp.Header.Get("Cache-Control"), path)
		again := ask("GET", path, "If-None-Match", resp.Header.Get("ETag"))
		assert.Equal(t, 304, again.StatusCode, path)
		assert.Equal(t, 200, ask("HEAD", path).StatusCode, path)
	})
	assert.NotEqual(t, ask("GET", "/").Header.Get("ETag"), ask("GET", "/ui/app.js").Header.Get("ETag"))
}

func TestNothingElseIsServed(t *testing.T) {
	for _, path := range []string{"/ui/", "/ui/vendor/", "/ui/index.html", "/index.html", "/ui/../ui.go", "/ui/ui.go", "/ui/%2e%2e/ui.go", "/static/app.js", "/api/live"} {
		resp := ask("GET", path)
		assert.Equal(t, 404, resp.StatusCode, path)
		assert.Equal(t, "application/json", resp.Header.Get("Content-Type"), path)
	}
	assert.Equal(t, 404, ask("POST", "/").StatusCode)
	assert.Equal(t, 404, ask("DELETE", "/ui/app.js").StatusCode)
}

func TestThePageIsSmall(t *testing.T) {
	total := 0
	files(t, func(_, text string) { total += len(text) })
	assert.Less(t, total, 200<<10)
}

func TestVendoredFilesAreAsPublished(t *testing.T) {
	readme, err := os.ReadFile("../../../shared/webui/static/vendor/README.md")
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| (\\S+) \\| npm `uplot` (\\S+), .*`([0-9a-f]{64})` \\|$").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, rows, 2)
	for _, row := range rows {
		raw, err := os.ReadFile("../../../shared/webui/static/vendor/" + row[1])
		require.NoError(t, err)
		assert.Equal(t, row[3], fmt.Sprintf("%x", sha256.Sum256(raw)), row[1])
		if strings.HasSuffix(row[1], ".js") {
			assert.Contains(t, string(raw[:100]), "v"+row[2])
		}
	}
}

// The policy forbids all this in a browser; here it is found before one is asked.
func TestNothingInlineAndNothingFromElsewhere(t *testing.T) {
	forbidden := map[string]*regexp.Regexp{
		".js":   regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b|new Function|setAttribute\('style|localStorage|document\.cookie`),
		".html": regexp.MustCompile(`(?i)<script>|<style|\sstyle=|\son\w+=|javascript:|(src|href)="(/|https?:|//)`),
		".css":  regexp.MustCompile(`(?i)url\(|@import|expression\(`),
	}
	elsewhere := regexp.MustCompile(`https?://[^"'\s]+`)
	files(t, func(name, text string) {
		if strings.HasPrefix(name, "vendor/") {
			return
		}
		if rule := forbidden[filepath.Ext(name)]; rule != nil {
			assert.Empty(t, rule.FindAllString(text, -1), name)
		}
		for _, address := range elsewhere.FindAllString(text, -1) {
			assert.Equal(t, "http://www.w3.org/2000/svg", address, "%s: a name, not a place", name)
		}
	})
}

// Text is readable in both schemes: WCAG 2 asks for a contrast of 4.5.
func TestContrast(t *testing.T) {
	raw, err := os.ReadFile("../../../shared/webui/static/page.css")
	require.NoError(t, err)
	schemes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(string(raw), -1)
	require.Len(t, schemes, 2)
	for i, scheme := range schemes {
		colours := map[string]float64{}
		for _, m := range regexp.MustCompile(`--([\w-]+): #([0-9a-f]{3,6});`).FindAllStringSubmatch(scheme[1], -1) {
			colours[m[1]] = luminance(t, m[2])
		}
		for _, pair := range [][2]string{{"text", "panel"}, {"text", "bg"}, {"text", "hover"}, {"text", "chosen"}, {"muted", "panel"}, {"muted", "raised"}, {"muted", "hover"}, {"good", "panel"}, {"warn", "panel"},
			{"bad", "panel"}, {"good", "good-bg"}, {"warn", "warn-bg"}, {"bad", "bad-bg"}, {"calm", "calm-bg"}, {"accent", "panel"}} {
			a, b := colours[pair[0]], colours[pair[1]]
			require.NotZero(t, a*b, "%v", pair)
			assert.GreaterOrEqual(t, (max(a, b)+.05)/(min(a, b)+.05), 4.5, "scheme %d: %v", i, pair)
		}
	}
}

// luminance is the relative luminance of a colour in hexadecimal digits (WCAG 2.2).
func luminance(t *testing.T, hex string) float64 {
	if len(hex) == 3 {
		hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
	}
	var sum float64
	for i, weight := range []float64{.2126, .7152, .0722} {
		n, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		require.NoError(t, err)
		c := float64(n) / 255
		if c <= .04045 {
			c /= 12.92
		} else {
			c = math.Pow((c+.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}
