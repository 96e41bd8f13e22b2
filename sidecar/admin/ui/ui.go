// Package ui is the page of a sidecar: static files that show what its API tells.
package ui

import (
	"embed"
	"net/http"

	"fairlead/shared/webui"
)

//go:embed static
var embedded embed.FS

// Handler serves the page at / and its parts below /ui/.
func Handler() http.Handler { return webui.Handler(embedded) }
