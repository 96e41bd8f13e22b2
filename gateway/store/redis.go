package store

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/redis/go-redis/v9/logging"

	"fairlead/shared/errs"
)

// Modes in which Redis is run.
const (
	Standalone = "standalone"
	Sentinel   = "sentinel"
	Cluster    = "cluster"
)

const (
	defaultPrefix      = "fairlead"
	defaultTimeout     = 50 * time.Millisecond
	defaultCallTimeout = time.Second
	defaultPool        = 32
	maxPrefix          = 64
)

// RedisConfig is what a Redis needs.
type RedisConfig struct {
	Mode                 string   // Standalone, Sentinel or Cluster; default Standalone
	Addresses            []string // host:port: of Redis, of the Sentinels, or of some nodes of the cluster
	Master               string   // its name at the Sentinels
	Database             int      // 0 with Cluster
	Username             string   // of the ACL; default: Redis's default user
	PasswordFile         string   // read for each connection; default: no password
	SentinelUsername     string
	SentinelPasswordFile string
	TLS                  *RedisTLS // nil: none

	// Prefix of all keys, and of the channel of events: 1 to 64 letters, digits and .:_-; default "fairlead".
	Prefix string
	// Timeout of Take, for which a stream's open waits. A Redis that answers no write within it is not used at all.
	// Default 50 ms.
	Timeout time.Duration
	// CallTimeout of everything else, and of connecting. Default 1 s.
	CallTimeout time.Duration
	// PoolSize bounds the connections, with Cluster those to each node; there is one more for Watch. Default 32.
	PoolSize int

	Logger   *slog.Logger   // default: none
	Metrics  *metrics.Set   // default: none
	OnHealth func(h Health) // told of each change, one after the other, and of how it begins before NewRedis returns; must not block long
}

// RedisTLS is the TLS of connections to Redis and its Sentinels, 1.2 or 1.3. The files are read for each connection.
type RedisTLS struct {
	CAFile     string // PEM; default: the authorities of the system
	CertFile   string // PEM, of a client certificate; default: none
	KeyFile    string
	ServerName string // default: the host that is dialled
}

// Redis is a Store in Redis 7 or Valkey, for several gateways.
//
// While Redis cannot be used, calls fail at once, but for Find and Replicas, which are tried for a moment, and one goroutine
// tries whether it can be written to again.
//
// All keys of one script are in one slot of a cluster, every key expires, and no name is part of a key as it is (see keys).
type Redis struct {
	cfg      RedisConfig
	keys     keys
	scripts  scripts
	meter    *meter
	health   health
	stop     context.Context // ends with Close
	close    context.CancelFunc
	link     atomic.Pointer[link] // what calls go over
	sentinel atomic.Int32         // index of the one that answered last
	anyway   chan struct{}        // taken by calls that are made while Redis is down
	waiting  sync.WaitGroup       // of our goroutines
	closing  sync.Once
	unread   sync.Map // names of lists of which some entries cannot be read
}

var _ Store = (*Redis)(nil)

// NewRedis makes a store and tries to reach Redis, for CallTimeout at most. That Redis cannot be reached or used is no error:
// the store begins degraded then. Errors are errs.ConfigInvalid, and errs.KeyUnreadable for files.
func NewRedis(cfg RedisConfig) (*Redis, error) {
	cfg, err := cfg.checked()
	if err != nil {
		return nil, err
	}
	logging.Disable() // go-redis has one logger for all clients, which writes to stderr; what it has to say is in the errors
	r := &Redis{cfg: cfg, keys: keys(cfg.Prefix), scripts: newScripts(), anyway: make(chan struct{}, max(cfg.PoolSize/4, 1))}
	r.stop, r.close = context.WithCancel(context.Background())
	r.health.wake = make(chan struct{}, 1)
	r.meter = newMeter(cfg.Metrics, r)
	r.begin()
	r.waiting.Go(r.watchHealth)
	return r, nil
}

// checked returns c with defaults.
func (c RedisConfig) checked() (RedisConfig, error) {
	c.Mode = or(c.Mode, Standalone)
	c.Prefix = or(c.Prefix, defaultPrefix)
	c.Timeout = or(c.Timeout, defaultTimeout)
	c.CallTimeout = or(c.CallTimeout, defaultCallTimeout)
	c.PoolSize = or(c.PoolSize, defaultPool)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnHealth == nil {
		c.OnHealth = func(Health) {}
	}
	invalid := func(what string) (RedisConfig, error) { return c, errs.New(errs.ConfigInvalid, "the store: %s", what) }
	switch {
	case c.Mode != Standalone && c.Mode != Sentinel && c.Mode != Cluster:
		return invalid("the mode must be standalone, sentinel or cluster")
	case len(c.Addresses) == 0:
		return invalid("there is no address")
	case c.Mode == Standalone && len(c.Addresses) > 1:
		return invalid("a standalone Redis has one address")
	case c.Mode == Sentinel && c.Master == "":
		return invalid("with Sentinels the master's name is needed")
	case c.Mode == Cluster && c.Database != 0:
		return invalid("a cluster has database 0 only")
	case c.Timeout < 0 || c.CallTimeout < 0 || c.PoolSize < 0 || c.Database < 0:
		return invalid("no time, size or number can be negative")
	case len(c.Prefix) > maxPrefix || strings.ContainsFunc(c.Prefix, func(r rune) bool { return !plain(r) && r != ':' }):
		return invalid("the prefix may have 64 letters, digits and .:_-")
	case c.TLS != nil && (c.TLS.CertFile == "") != (c.TLS.KeyFile == ""):
		return invalid("a client certificate needs its key, and a key its certificate")
	}
	return c, c.readable()
}

// readable says whether all files can be used now.
func (c RedisConfig) readable() error {
	for _, file := range []string{c.PasswordFile, c.SentinelPasswordFile} {
		if _, err := password(file); err != nil {
			return errs.Wrap(errs.KeyUnreadable, err, "read the store's password")
		}
	}
	if c.TLS != nil {
		if _, err := c.TLS.config("localhost"); err != nil {
			return errs.Wrap(errs.KeyUnreadable, err, "read the store's certificates")
		}
	}
	return nil
}

func or[T comparable](it, otherwise T) T {
	var zero T
	if it == zero {
		return otherwise
	}
	return it
}

// Health is as in Store.
func (r *Redis) Health() Health { return r.health.now() }

// Close ends all calls and all who watch, and returns when nothing of the store runs any more; those who called return soon.
// It may be called more than once.
func (r *Redis) Close() error {
	r.closing.Do(func() {
		r.close()
		r.waiting.Wait()
		r.link.Load().close()
	})
	return nil
}

func (r *Redis) closed() bool { return r.stop.Err() != nil }
