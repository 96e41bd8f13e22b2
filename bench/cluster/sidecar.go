package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	sidecarapp "fairlead/sidecar/app"
	sidecarconfig "fairlead/sidecar/config"
)

// Sidecar is a sidecar whose endpoint is the balancer.
type Sidecar struct {
	program
	addrs map[string]string // of the listeners, by name
}

const (
	tunnelsEach   = 2 // of a sidecar
	reconnectBase = 20 * time.Millisecond
	reconnectCap  = 500 * time.Millisecond
)

// newSidecar makes a sidecar that does not run yet.
func (s *Site) newSidecar(n int) (*Sidecar, error) {
	host, name := s.net.sidecar(n), fmt.Sprintf("sidecar-%d", n)
	one := &Sidecar{addrs: s.listeners(host), program: program{Name: name, exe: filepath.Join(s.bin, "sidecar"), config: s.file(name + ".yaml"),
		log: s.file(name + ".log"), admin: at(host, adminPort)}}
	return one, s.configureSidecar(n, one)
}

// listeners are where a sidecar takes connections for each route.
func (s *Site) listeners(host string) map[string]string {
	addrs := map[string]string{}
	for i, route := range s.routes() {
		addrs[route] = at(host, routePort+i)
	}
	return addrs
}

func (s *Site) routes() []string {
	routes := []string{RouteEcho, RouteBroken}
	if s.SSH != nil {
		routes = append(routes, RouteSSH, RouteForward)
	}
	return routes
}

// configureSidecar writes a sidecar's configuration.
func (s *Site) configureSidecar(n int, one *Sidecar) error {
	c := sidecarconfig.Default()
	c.Gateway.Endpoints = []string{"wss://" + s.Balancer.Addr() + "/"}
	c.Gateway.CAFile, c.Gateway.TokenFile, c.Gateway.ConnectTimeout = s.CAFile(), s.TokenFile(), 5*time.Second
	c.Tunnels = sidecarconfig.Tunnels{Min: tunnelsEach, Max: tunnelsEach}
	c.Reconnect.Base, c.Reconnect.Cap, c.Reconnect.MaxAttempts = reconnectBase, reconnectCap, 0
	for _, route := range s.routes() {
		var l sidecarconfig.Listener
		l.SetDefaults()
		l.Name, l.Route, l.Listen = route, route, one.addrs[route]
		c.Listeners = append(c.Listeners, l)
	}
	c.Admin.Listen = one.admin
	c.Shutdown.Drain = shortDrain
	if s.cfg.Sidecar != nil {
		s.cfg.Sidecar(n, &c)
	}
	return write(one.config, c)
}

// Addr is where the sidecar takes connections for a route.
func (s *Sidecar) Addr(route string) string { return s.addrs[route] }

// Status asks the sidecar.
func (s *Sidecar) Status(ctx context.Context) (st sidecarapp.Status, err error) {
	return st, s.Get(ctx, "/api/status", &st)
}
