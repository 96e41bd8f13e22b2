// Package ui is the page that a person keeps open in front of a gateway: static files that show what the admin API tells.
// There is nothing secret in it, so it is served to everybody; what it asks the API needs whatever the API asks for.
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
