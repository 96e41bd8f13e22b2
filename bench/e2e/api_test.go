package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	sidecarconfig "fairlead/sidecar/config"
)

// sidecarStatus is what GET /api/status answers, as docs and people know it.
type sidecarStatus struct {
	State   string    `json:"state"`
	Since   time.Time `json:"since"`
	Tunnels []struct {
		ID       string   `json:"id"`
		Endpoint string   `json:"endpoint"`
		Replica  string   `json:"replica"`
		State    string   `json:"state"`
		RTT      *float64 `json:"rtt_ms"`
		Streams  int      `json:"streams"`
		Resumes  int      `json:"resumes"`
		Error    string   `json:"error"`
	} `json:"tunnels"`
	Queue     struct{ Length, Size int } `json:"queue"`
	Listeners []struct {
		Name     string `json:"name"`
		Listen   string `json:"listen"`
		Route    string `json:"route"`
		Priority string `json:"priority"`
		Active   int    `json:"active"`
		Total    int    `json:"total"`
	} `json:"listeners"`
	Quality string `json:"quality"`
	Events  []struct {
		Time     time.Time `json:"time"`
		Tunnel   int       `json:"tunnel"`
		State    string    `json:"state"`
		Attempt  int       `json:"attempt"`
		DelayMS  int64     `json:"delay_ms"`
		Endpoint string    `json:"endpoint"`
		Code     string    `json:"code"`
		Reason   string    `json:"reason"`
	} `json:"events"`
}

// status asks a sidecar how it is.
func (s *sidecarNode) status(t *testing.T) sidecarStatus {
	t.Helper()
	var st sidecarStatus
	require.NoError(t, json.Unmarshal([]byte(get(t, s.url("/api/status"))), &st))
	return st
}

// tunnelID is the id of the only tunnel of a sidecar that is connected.
func (s *sidecarNode) tunnelID(t *testing.T) string {
	t.Helper()
	st := s.status(t)
	require.Len(t, st.Tunnels, 1)
	require.NotEmpty(t, st.Tunnels[0].ID)
	return st.Tunnels[0].ID
}

// tunnelAtGateway is an element of what GET /api/tunnels answers.
type tunnelAtGateway struct {
	ID       string    `json:"id"`
	Tenant   string    `json:"tenant"`
	Subject  string    `json:"subject"`
	Peer     string    `json:"peer"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	Expires  time.Time `json:"token_expires"`
	Streams  int       `json:"streams"`
	Opened   int       `json:"opened"`
	Sent     int64     `json:"bytes_sent"`
	Received int64     `json:"bytes_received"`
	Resumes  int       `json:"resumes"`
}

// tunnels asks a gateway for its tunnels.
func (g *gatewayNode) tunnels(t *testing.T) []tunnelAtGateway {
	t.Helper()
	var list []tunnelAtGateway
	require.NoError(t, json.Unmarshal([]byte(get(t, g.url("/api/tunnels"))), &list))
	return list
}

// poolOfTenant is what GET /api/backends says of one tenant's SSH connections.
type poolOfTenant struct {
	Tenant      string
	Channels    int
	Connections []struct{ ID string }
}

// backendAtGateway is an element of what GET /api/backends answers.
type backendAtGateway struct {
	Name    string         `json:"name"`
	Address string         `json:"address"`
	Breaker string         `json:"breaker"`
	Pools   []poolOfTenant `json:"pools"`
}

// backendsOf asks a gateway for its backends.
func backendsOf(t *testing.T, g *gatewayNode) []backendAtGateway {
	t.Helper()
	var list []backendAtGateway
	require.NoError(t, json.Unmarshal([]byte(get(t, g.url("/api/backends"))), &list))
	return list
}

// streamsAtGateway counts the streams of all tunnels.
func (w *world) streamsAtGateway() (n int) {
	w.t.Helper()
	for _, tunnel := range w.gateway.tunnels(w.t) {
		n += tunnel.Streams
	}
	return n
}

// poolOf sets the size of the sidecar's pool.
func poolOf(least, most int) func(*sidecarconfig.Config) {
	return func(c *sidecarconfig.Config) { c.Tunnels = sidecarconfig.Tunnels{Min: least, Max: most} }
}
