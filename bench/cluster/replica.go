package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/testbed/fault"
)

// Replica is a gateway.
type Replica struct {
	program
	Peer  *fault.Proxy // before its peer port: what other replicas go through to it
	Store *fault.Proxy // before its Redis; nil with Memory or Sentinel

	address string
}

const (
	nameOfReplica = "gateway-%d"
	shortDrain    = 2 * time.Second // unless a scenario is about draining
)

// newReplica makes a gateway that does not run yet, with the proxies on its ways.
func (s *Site) newReplica(n int) (r *Replica, err error) {
	host := s.net.replica(n)
	name := fmt.Sprintf(nameOfReplica, n)
	r = &Replica{address: at(host, gatewayPort), program: program{Name: name, exe: filepath.Join(s.bin, "gateway"), config: s.file(name + ".yaml"),
		log: s.file(name + ".log"), admin: at(host, adminPort), args: []string{"--instance", name}}}
	if r.Peer, err = fault.New(fault.Config{Target: at(host, peerPort)}); err != nil {
		return nil, err
	}
	s.defers(func() error { r.Peer.Close(); return nil })
	if s.Redis != nil && s.sentinel == nil {
		if r.Store, err = fault.New(fault.Config{Target: s.Redis.Addr()}); err != nil {
			return nil, err
		}
		s.defers(func() error { r.Store.Close(); return nil })
	}
	return r, write(r.config, s.gatewayConfig(n, host, r))
}

// Address is where the gateway takes tunnels.
func (r *Replica) Address() string { return r.address }

// Isolate parts the gateway from other gateways and from the store, silently; Rejoin ends that.
func (r *Replica) Isolate() {
	r.Peer.Blackhole()
	if r.Store != nil {
		r.Store.Blackhole()
	}
}

// Rejoin ends Isolate.
func (r *Replica) Rejoin() {
	r.Peer.Resume()
	if r.Store != nil {
		r.Store.Resume()
	}
}

// Tunnels lists the ids of the tunnels that the gateway holds.
func (r *Replica) Tunnels(ctx context.Context) (ids []string, err error) {
	var list []struct {
		ID string `json:"id"`
	}
	err = r.Get(ctx, "/api/tunnels", &list)
	for _, t := range list {
		ids = append(ids, t.ID)
	}
	return ids, err
}

func (s *Site) gatewayConfig(n int, host string, r *Replica) gatewayconfig.Config {
	c := gatewayconfig.Default()
	c.Listen, c.Admin.Listen = at(host, gatewayPort), r.admin
	c.Admin.RequestsPerMinute = 1 << 30 // waiting is done by asking
	c.TLS.CertFile, c.TLS.KeyFile = s.cert.CertFile, s.cert.KeyFile
	var issuer gatewayconfig.Issuer
	issuer.SetDefaults()
	issuer.Issuer, issuer.Audience, issuer.HMACSecretFile = s.issuer.Issuer(), s.issuer.Audience(), s.issuer.SecretFile()
	c.Auth.Issuers = []gatewayconfig.Issuer{issuer}
	c.Backends = map[string]gatewayconfig.Backend{RouteEcho: backendAt(s.Target.Addr()), RouteBroken: backendAt(s.Backend.Addr())}
	c.Routes = map[string]gatewayconfig.Route{
		RouteEcho:   {Backend: RouteEcho, Mode: gatewayconfig.ModePassthrough, Compression: "auto"},
		RouteBroken: {Backend: RouteBroken, Mode: gatewayconfig.ModePassthrough, Compression: "auto"},
	}
	if s.SSH != nil {
		b := backendAt(s.SSH.Addr())
		b.User, b.KeyFile, b.HostKeys.KnownHostsFile = s.SSH.User(), s.SSH.KeyFile(), s.SSH.KnownHostsFile()
		c.Backends["sshd"] = b
		c.Routes[RouteSSH] = gatewayconfig.Route{Backend: "sshd", Mode: gatewayconfig.ModePassthrough, Compression: "auto"}
		c.Routes[RouteForward] = gatewayconfig.Route{Backend: "sshd", Mode: gatewayconfig.ModeForward, Target: s.Target.Addr(), Compression: "auto"}
	}
	c.Policy = []gatewayconfig.Rule{{Tenants: []string{"*"}, Routes: []string{"*"}}}
	c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {}}
	c.Limits.HandshakesPerMinute, c.Limits.UnauthenticatedPerAddress = 0, 0 // they all come from one address
	c.Limits.Shedding.Enabled = false                                       // a machine that is short of CPU breaks no connection
	c.Shutdown.Drain = shortDrain
	c.Peer.Listen, c.Peer.SecretFile, c.Peer.Advertise = at(host, peerPort), s.file("peer-secret"), r.Peer.Addr()
	s.configureStore(&c, r)
	if s.cfg.Gateway != nil {
		s.cfg.Gateway(n, &c)
	}
	return c
}

func (s *Site) configureStore(c *gatewayconfig.Config, r *Replica) {
	switch {
	case s.sentinel != nil:
		c.Store.Kind, c.Store.Mode, c.Store.Master, c.Store.Address = gatewayconfig.StoreRedis, "sentinel", sentinelMaster, s.sentinel.addr
	case r.Store != nil:
		c.Store.Kind, c.Store.Address = gatewayconfig.StoreRedis, r.Store.Addr()
	default:
		c.Peer.Listen, c.Peer.SecretFile, c.Peer.Advertise = "", "", ""
	}
	if c.Store.Kind == gatewayconfig.StoreRedis {
		c.Store.Replicas = s.cfg.Replicas
		if s.cfg.Patient {
			c.Store.Timeout = time.Second
		}
	}
}

func backendAt(address string) (b gatewayconfig.Backend) {
	b.SetDefaults()
	b.Address = address
	return b
}
