package store

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	maxPassword = 4 << 10 // bytes of a password's file
	maxPEM      = 1 << 20
	masterTTL   = time.Second // how long what a Sentinel said counts for more connections of the same link
)

// link is the connections to Redis. A new one is made when Redis comes back, so that none of before is used again.
type link struct {
	client  redis.UniversalClient
	asking  chan struct{}          // held by who asks the Sentinels
	master  atomic.Pointer[string] // address that they named last
	learned time.Time              // when; guarded by asking
}

func (l *link) close() { _ = l.client.Close() } // there is nobody to tell, and nothing to lose

// newLink connects to nothing yet.
func (r *Redis) newLink() *link {
	l := &link{asking: make(chan struct{}, 1)}
	o := r.options()
	switch r.cfg.Mode {
	case Cluster:
		c := o.Cluster()
		c.DisableRoutingPolicies = true // which would ask for COMMAND
		c.MaxRedirects = 3
		c.DialerRetries = 1
		l.client = redis.NewClusterClient(c)
	case Sentinel:
		s := o.Simple()
		s.Addr = "master"
		s.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
			address, err := r.masterOf(ctx, l)
			if err != nil {
				return nil, err
			}
			return r.dial(ctx, network, address)
		}
		l.client = redis.NewClient(s)
	default:
		l.client = redis.NewClient(o.Simple())
	}
	return l
}

// options: RESP 2, no names and no notifications, so that connecting takes no right but AUTH; no retries but our own; as
// many connections as were asked for and no second pool.
func (r *Redis) options() *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs: r.cfg.Addresses, DB: r.cfg.Database, Dialer: r.dial,
		CredentialsProviderContext: credentials(r.cfg.Username, r.cfg.PasswordFile),
		Protocol:                   2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		MaxRetries:               -1, DialerRetries: 1,
		DialTimeout: r.cfg.CallTimeout, ReadTimeout: r.cfg.CallTimeout, WriteTimeout: r.cfg.CallTimeout, ContextTimeoutEnabled: true,
		PoolSize: r.cfg.PoolSize, MaxActiveConns: r.cfg.PoolSize, PoolTimeout: r.cfg.CallTimeout, PipelinePoolSize: -1,
	}
}

// credentials reads a password for each connection.
func credentials(user, file string) func(context.Context) (string, string, error) {
	return func(context.Context) (string, string, error) {
		word, err := password(file)
		if err != nil {
			return "", "", &localError{err}
		}
		return user, word, nil
	}
}

// localError is one of this machine, for which Redis is not to blame.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// password reads a file; without a name there is none. One line's end after it is not part of it.
func password(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	raw, err := readFile(file, maxPassword)
	if err != nil {
		return "", err
	}
	return string(bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r"))), nil
}

func readFile(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s has more than %d bytes", file, most)
	}
	return raw, err
}

// dialError says that there is no connection.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial connects, until ctx ends or the store is closed.
func (r *Redis) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	defer context.AfterFunc(r.stop, cancel)()
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, &dialError{err}
	}
	if r.cfg.TLS == nil {
		return conn, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	cfg, err := r.cfg.TLS.config(host)
	if err != nil {
		return nil, errors.Join(&localError{err}, conn.Close())
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &dialError{fmt.Errorf("TLS with %s: %w", address, err)}
	}
	return secure, nil
}

// config reads the files.
func (t RedisTLS) config(host string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: or(t.ServerName, host)}
	if t.CAFile != "" {
		raw, err := readFile(t.CAFile, maxPEM)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("%s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// masterOf is the master for a new connection of a link. Of many that come at once, one asks.
func (r *Redis) masterOf(ctx context.Context, l *link) (string, error) {
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return "", &dialError{fmt.Errorf("ask a Sentinel: %w", ctx.Err())}
	}
	defer func() { <-l.asking }()
	if known := l.master.Load(); known != nil && time.Since(l.learned) < masterTTL {
		return *known, nil
	}
	found, err := r.master(ctx)
	if err == nil {
		l.learned = time.Now()
		l.master.Store(&found)
	}
	return found, err
}

// master asks the Sentinels, one after the other, for the master's address; first the one that answered last.
func (r *Redis) master(ctx context.Context) (string, error) {
	var failed error
	first := int(r.sentinel.Load())
	for i := range r.cfg.Addresses {
		n := (first + i) % len(r.cfg.Addresses)
		found, err := r.askSentinel(ctx, r.cfg.Addresses[n], len(r.cfg.Addresses)-i)
		if err == nil {
			r.sentinel.Store(int32(n))
			return found, nil
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return "", failed
}

// askSentinel leaves as much time for each of those that are left.
func (r *Redis) askSentinel(ctx context.Context, address string, left int) (string, error) {
	within := r.cfg.CallTimeout
	if until, ok := ctx.Deadline(); ok {
		within = min(within, time.Until(until))
	}
	ctx, cancel := context.WithTimeout(ctx, within/time.Duration(left))
	defer cancel()
	sentinel := redis.NewSentinelClient(&redis.Options{
		Addr: address, Dialer: r.dial, CredentialsProviderContext: credentials(r.cfg.SentinelUsername, r.cfg.SentinelPasswordFile),
		Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, PoolSize: 1, DialTimeout: r.cfg.CallTimeout,
		ReadTimeout: r.cfg.CallTimeout, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer sentinel.Close()
	found, err := sentinel.GetMasterAddrByName(ctx, r.cfg.Master).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", &dialError{fmt.Errorf("the Sentinel at %s knows no master %q", address, r.cfg.Master)}
	case err != nil:
		return "", &dialError{fmt.Errorf("ask the Sentinel at %s: %w", address, err)}
	case len(found) != 2:
		return "", &dialError{fmt.Errorf("the Sentinel at %s gives no address", address)}
	}
	return net.JoinHostPort(found[0], found[1]), nil
}
