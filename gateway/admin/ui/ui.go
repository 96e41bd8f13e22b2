// Package ui is the page that a person keeps open in front of a gateway: static files that show what the admin API tells.
// There is nothing secret in it, so it is served to everybody; what it asks the API needs whatever the API asks for.
package ui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

//go:embed static
var embedded embed.FS

// Policy is the page's Content-Security-Policy: nothing from elsewhere, nothing inline, no frame around it, no form that
// is sent anywhere, and no text that becomes markup, which is what a tenant's hostile name would need.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// file is one that is served.
type file struct {
	body []byte
	kind string // Content-Type
	etag string
}

// Handler serves the page at / and its parts below /ui/. All references in it are relative, so that a proxy may put a
// path in front. Mount it at "GET /{$}" and "GET /ui/".
func Handler() http.Handler {
	files := load()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := files[r.URL.Path]
		if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
			adminapi.Refuse(w, errs.New(errs.NotFound, "there is nothing for %s at %.100q", r.Method, r.URL.Path))
			return
		}
		h := w.Header()
		h.Set("Content-Type", f.kind)
		h.Set("ETag", f.etag)
		h.Set("Cache-Control", "no-cache") // a browser asks whether it has changed, and is mostly told that it has not
		h.Set("Content-Security-Policy", Policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.body))
	})
}

// load reads the embedded files: they are few, and part of the program, so that reading them cannot fail.
func load() map[string]file {
	files := map[string]file{}
	_ = fs.WalkDir(embedded, "static", func(name string, entry fs.DirEntry, _ error) error {
		if entry.IsDir() {
			return nil
		}
		body, _ := embedded.ReadFile(name)
		sum := sha256.Sum256(body)
		f := file{body: body, kind: kind(name), etag: `"` + hex.EncodeToString(sum[:8]) + `"`}
		if address := strings.TrimPrefix(name, "static/"); address == "index.html" {
			files["/"] = f
		} else {
			files["/ui/"+address] = f
		}
		return nil
	})
	return files
}

// kind is the Content-Type of a file by its name; not what the machine's own tables say, which differ.
func kind(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return "text/plain; charset=utf-8"
}
