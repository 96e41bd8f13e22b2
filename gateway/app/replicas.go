package app

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"net"
	"strings"
	"time"

	"fairlead/gateway/config"
	"fairlead/gateway/peer"
	"fairlead/gateway/session"
	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// What makes this gateway one of several that work as one.

func (a *App) newStore() (err error) {
	a.self = store.Replica{ID: a.opts.Instance + "/" + rand.Text(), Name: a.opts.Instance, Version: a.opts.Version, Started: a.started}
	c := a.config().Store
	if c.Kind == config.StoreMemory {
		a.store = store.NewMemory(store.MemoryConfig{})
	} else if a.store, err = store.NewRedis(redisConfig(c, a)); err != nil {
		return err
	}
	a.stack.Push("store", func(context.Context) error { return a.store.Close() })
	a.stack.Push("what replicas share", a.stopBeside)
	return nil
}

func redisConfig(c config.Store, a *App) store.RedisConfig {
	r := store.RedisConfig{Mode: c.Mode, Master: c.Master, Database: c.Database, Username: c.Username, PasswordFile: c.PasswordFile,
		SentinelUsername: c.SentinelUsername, SentinelPasswordFile: c.SentinelPasswordFile, Prefix: c.Prefix, Timeout: c.Timeout,
		Logger: a.log, Metrics: a.metrics.Set(), OnHealth: a.storeHealth}
	for address := range strings.SplitSeq(c.Address, ",") {
		r.Addresses = append(r.Addresses, strings.TrimSpace(address))
	}
	if t := c.TLS; t.Enabled {
		r.TLS = &store.RedisTLS{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName}
	}
	return r
}

// shared says whether there can be other replicas.
func (a *App) shared() bool { return a.config().Store.Kind != config.StoreMemory }

// newPeer binds the port for other replicas, and finds out at which address they reach it.
func (a *App) newPeer() (err error) {
	c := a.config().Peer
	if !a.shared() || c.Listen == "" {
		return nil
	}
	a.peer, err = peer.New(peer.Config{Listen: c.Listen, SecretFile: c.SecretFile, Replica: a.self.ID, Name: a.self.Name, Admit: a.admit,
		MaxMessage: int(a.config().Tunnel.MaxMessage), Tune: ws.Tune, Logger: a.log, Metrics: a.metrics.Set()})
	if err != nil {
		return err
	}
	a.stack.Push("peer port", a.peer.Shutdown)
	if a.self.Address = c.Advertise; a.self.Address == "" {
		a.self.Address = advertised(a.peer.Addr().(*net.TCPAddr), a.config().Store.Address)
	}
	if a.self.Address == "" {
		a.log.Error("no address is known at which other replicas reach this one, and tunnels that come to them will be lost: set peer.advertise",
			logging.FieldCode, errs.ConfigInvalid.String())
	} else {
		a.log.Info("other replicas reach this one", "address", a.self.Address)
	}
	return nil
}

// advertised is the address at which others most likely reach a port of this machine: the one that it listens on, or that it has
// on the way to the store, or, when there is no way yet, the first that is not for this machine or link alone. Empty: there is none.
func advertised(listens *net.TCPAddr, storeAddress string) string {
	if !listens.IP.IsUnspecified() {
		return listens.String()
	}
	ip := towards(storeAddress)
	if addresses, err := net.InterfaceAddrs(); ip == nil && err == nil {
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && (ip == nil || ip.To4() == nil && n.IP.To4() != nil) {
				ip = n.IP
			}
		}
	}
	if ip == nil {
		return ""
	}
	return (&net.TCPAddr{IP: ip, Port: listens.Port}).String()
}

// resolveTime bounds the search for the store's name.
const resolveTime = 2 * time.Second

// towards is this machine's address on the way to the first of some others; nil: there is no way.
func towards(addresses string) net.IP {
	first, _, _ := strings.Cut(addresses, ",")
	conn, err := (&net.Dialer{Timeout: resolveTime}).Dial("udp", strings.TrimSpace(first)) // sends nothing
	if err != nil {
		return nil
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP
}

// admit decides about a tunnel that another replica brings. The token is checked here: the owner trusts nobody else with that.
func (a *App) admit(ctx context.Context, call peer.Call) (func(link.Conn, *link.Handshake), error) {
	var cert *x509.Certificate
	if len(call.Certificate) > 0 {
		var err error
		if cert, err = x509.ParseCertificate(call.Certificate); err != nil {
			return nil, errs.Wrap(errs.BadRequest, err, "the client certificate of a call")
		}
	}
	who, err := a.verifyHeader(ctx, call.Token, cert)
	if err != nil {
		return nil, err
	}
	arrival := session.Arrival{Who: who, Client: call.Client, Authorization: call.Token, Via: call.Via}
	if err := a.sessions.Owns(call.Tunnel, arrival); err != nil {
		return nil, err
	}
	return func(conn link.Conn, hs *link.Handshake) {
		arrival.Conn = conn
		a.sessions.Receive(arrival, hs)
	}, nil
}

// peers gives the peer port the types of the sessions.
type peers struct {
	*peer.Peer
	name string
}

// Bring is as in session.Peers.
func (p peers) Bring(ctx context.Context, to store.Replica, a session.Arrival, hs *link.Handshake) (func(context.Context) error, error) {
	id, _ := hs.Tunnel()
	call := peer.Call{Tunnel: id, Token: a.Authorization, Client: a.Client, Via: p.name}
	if cert := a.Who.Origin.(origin).cert; cert != nil {
		call.Certificate = cert.Raw
	}
	owner, err := p.Dial(ctx, to.Address, to.ID, call, hs.Transfer())
	if err != nil {
		return nil, err
	}
	conn, ok := a.Conn.(*ws.Conn)
	if !ok {
		owner.Close()
		return nil, errs.New(errs.Internal, "a tunnel over %T, which cannot be relayed", a.Conn)
	}
	client, err := conn.Detach()
	if err != nil {
		owner.Close()
		return nil, err
	}
	return func(ctx context.Context) error {
		_, _, err := p.Carry(ctx, peer.Relay{Tunnel: id.String(), Owner: to.Name, Client: a.Client}, client, owner)
		return err
	}, nil
}

// replicas is what the sessions need of the others.
func (a *App) replicas() session.Replicas {
	r := session.Replicas{Store: a.store, Self: a.self}
	if a.peer != nil {
		r.Peers = peers{a.peer, a.self.Name}
	}
	return r
}

// Times of what replicas tell each other.
const (
	announceEvery = 5 * time.Second
	announceTTL   = 15 * time.Second
	pullEvery     = 2 * time.Second
	callTime      = time.Second
	pinEvery      = 24 * time.Hour
	pinTime       = time.Minute // for the host keys of all backends
	pinAgain      = 10 * time.Second
)
