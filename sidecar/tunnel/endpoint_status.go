package tunnel

import "time"

// EndpointStatus describes an endpoint.
type EndpointStatus struct {
	URL    string    `json:"url"`
	Weight int       `json:"weight"`
	State  Health    `json:"state"`
	Active bool      `json:"active"` // new tunnels go there
	Since  time.Time `json:"since"`
	Error  string    `json:"error,omitempty"`
}

func (es *endpoints) status(now time.Time) []EndpointStatus {
	es.mu.Lock()
	defer es.mu.Unlock()
	all := make([]EndpointStatus, 0, len(es.list))
	for _, e := range es.list {
		st := EndpointStatus{URL: e.url, Weight: e.weight, State: e.health, Since: e.since}
		st.Active = es.weighted && es.class(e, now) == 0 || !es.weighted && e == es.active
		if e.err != nil {
			st.Error = e.err.Error()
		}
		all = append(all, st)
	}
	return all
}

func (es *endpoints) failing() (n int) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.list {
		if e.health == Failing {
			n++
		}
	}
	return n
}
