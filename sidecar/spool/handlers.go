package spool

import (
	"net/http"

	"fairlead/shared/adminapi"
)

// Listing is what GET /api/spool answers.
type Listing struct {
	Status      Status `json:"status"`
	Connections []Item `json:"connections"`
}

// Routes adds the spool's addresses to the sidecar's admin API.
func (s *Spool) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/spool", adminapi.Show(func() any { return Listing{s.Status(), s.List()} }))
	mux.HandleFunc("GET /api/spool/{id}", one(func(id ID) (any, error) { return s.Show(id) }))
	mux.HandleFunc("POST /api/spool/{id}/retry", one(func(id ID) (any, error) { return struct{}{}, s.Retry(id) }))
	mux.HandleFunc("DELETE /api/spool/{id}", one(func(id ID) (any, error) { return struct{}{}, s.Drop(id) }))
}

// one makes a handler of what concerns the connection whose id is in the path.
func one(f func(ID) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := ParseID(r.PathValue("id"))
		if err == nil {
			var answer any
			if answer, err = f(id); err == nil {
				adminapi.Answer(w, http.StatusOK, answer)
				return
			}
		}
		adminapi.Refuse(w, err)
	}
}
