// Package webui serves the pages of both programs: their own static files, and those that they have in common (the frame,
// charts, tables, how values are written). Nothing in them comes from elsewhere.
package webui

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
var common embed.FS

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

// Handler serves a page at / and its parts below /ui/. own has the page's files below static, index.html among them. All
// references in them are relative, so that a proxy may put a path in front. Mount it at "GET /{$}" and "GET /ui/".
func Handler(own fs.FS) http.Handler {
	files := map[string]file{}
	load(files, common)
	load(files, own)
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

// load reads embedded files: they are few, and part of the program, so that reading them cannot fail.
func load(files map[string]file, from fs.FS) {
	_ = fs.WalkDir(from, "static", func(name string, entry fs.DirEntry, _ error) error {
		if entry.IsDir() {
			return nil
		}
		body, _ := fs.ReadFile(from, name)
		sum := sha256.Sum256(body)
		f := file{body: body, kind: kind(name), etag: `"` + hex.EncodeToString(sum[:8]) + `"`}
		if address := strings.TrimPrefix(name, "static/"); address == "index.html" {
			files["/"] = f
		} else {
			files["/ui/"+address] = f
		}
		return nil
	})
}

// Files are the static files that pages have in common, below static.
func Files() fs.FS { return common }

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
