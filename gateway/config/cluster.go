package config

import (
	"strings"
	"time"

	"fairlead/shared/config"
)

// Kinds of stores.
const (
	StoreMemory = "memory" // in the process, for a single gateway
	StoreRedis  = "redis"  // in Redis or Valkey, for several
)

// Store is where the state is kept that replicas share.
type Store struct {
	// Kind is "memory" or "redis".
	Kind string `koanf:"kind" enum:"memory|redis" doc:"memory: in the process, for a single gateway; redis: in Redis 7 or Valkey, for several replicas that work as one" example:"redis"`
	// Address is host:port, or several, separated by commas.
	Address string `koanf:"address" allowed:"host:port, with commas between several; required with kind: redis" doc:"Redis; with mode sentinel the Sentinels, with mode cluster some of its nodes" example:"redis.internal:6379"`
	// Mode is how Redis is run.
	Mode string `koanf:"mode" enum:"standalone|sentinel|cluster" doc:"how Redis is run" example:"sentinel"`
	// Master is its name at the Sentinels.
	Master string `koanf:"master" allowed:"required with mode: sentinel, else empty" doc:"name of the master at the Sentinels" example:"fairlead"`
	// Database is the number of the database.
	Database int `koanf:"database" min:"0" max:"1024" doc:"number of the database; a cluster has only 0" example:"1"`
	// Username is the ACL user.
	Username string `koanf:"username" doc:"user of Redis's ACL; empty: default" example:"fairlead"`
	// PasswordFile holds the user's password; read again for each connection.
	PasswordFile string `koanf:"password_file" doc:"file that holds the password, read again for each connection; empty: none" example:"/etc/fairlead/redis-password"`
	// SentinelUsername is the ACL user at the Sentinels.
	SentinelUsername string `koanf:"sentinel_username" allowed:"only with mode: sentinel" doc:"user of the Sentinels' ACL" example:"fairlead"`
	// SentinelPasswordFile holds its password.
	SentinelPasswordFile string `koanf:"sentinel_password_file" allowed:"only with mode: sentinel" doc:"file that holds the password of the Sentinels; empty: none" example:"/etc/fairlead/sentinel-password"`
	// TLS is that of the connections to Redis, and to the Sentinels.
	TLS StoreTLS `koanf:"tls" doc:"TLS of the connections to Redis and its Sentinels."`
	// Prefix is what all keys begin with.
	Prefix string `koanf:"prefix" allowed:"1 to 64 letters, digits and .:_-" doc:"what all keys in Redis begin with; replicas of one gateway have the same, different gateways different ones" example:"fairlead-staging"`
	// Timeout bounds what a stream's open waits for the store.
	Timeout time.Duration `koanf:"timeout" min:"1ms" max:"1s" doc:"how long an open waits for the store before it is granted or refused by this replica's share of the limits" example:"100ms"`
	// Replicas is how many there should be.
	Replicas int `koanf:"replicas" min:"0" max:"1000" doc:"replicas that share the limits while the store cannot be used; 0: as many as were seen last" example:"3"`
}

// StoreTLS is the TLS of connections to Redis.
type StoreTLS struct {
	// Enabled switches it on.
	Enabled bool `koanf:"enabled" doc:"use TLS" example:"true"`
	// CAFile is a PEM file of authorities.
	CAFile string `koanf:"ca_file" allowed:"only with enabled" doc:"PEM file of the authorities that may sign Redis's certificate; empty: those of the system" example:"/etc/fairlead/redis-ca.pem"`
	// CertFile is a PEM file of a client certificate.
	CertFile string `koanf:"cert_file" allowed:"only with enabled, together with key_file" doc:"PEM file of a client certificate; read again for each connection" example:"/etc/fairlead/redis.crt"`
	// KeyFile is its key.
	KeyFile string `koanf:"key_file" allowed:"only with enabled, together with cert_file" doc:"PEM file of its key" example:"/etc/fairlead/redis.key"`
	// ServerName is what the certificate must be for.
	ServerName string `koanf:"server_name" allowed:"only with enabled" doc:"name that Redis's certificate must be for; empty: the host of the address" example:"redis.internal"`
}

// Peer is how replicas reach each other.
type Peer struct {
	// Listen is host:port; empty switches the peer port off.
	Listen string `koanf:"listen" allowed:"host:port" doc:"address for other replicas, which bring tunnels that were made here and came to them; TLS with a key made of the secret. Open only with store.kind: redis. Empty: none" example:"0.0.0.0:9444"`
	// SecretFile holds what replicas prove to each other to know.
	SecretFile string `koanf:"secret_file" allowed:"required with store.kind: redis, unless listen is empty" doc:"file that holds the secret of all replicas, 32 bytes or more; of several lines the first is used and all are accepted. Read again when it changes" example:"/etc/fairlead/peer-secret"`
	// Advertise is the address that is told to others.
	Advertise string `koanf:"advertise" allowed:"host:port" doc:"address at which other replicas reach this one's peer port; empty: the address of this machine on the way to the store" example:"10.1.2.3:8444"`
}

// Balance is how tunnels are spread anew over replicas.
type Balance struct {
	// MaxAge is the age from which a tunnel is asked to move; 0: none.
	MaxAge time.Duration `koanf:"max_age" doc:"age, or up to a fifth earlier, from which a tunnel is asked to move: its sidecar opens another one, streams that are open finish on the old one. 0s: any age" example:"12h"`
	// Tolerance is how far above the replicas' average this one may be, in per cent; 0: as far as it is.
	Tolerance int `koanf:"tolerance" min:"0" max:"1000" doc:"per cent by which this replica may have more tunnels than the average of all before some are asked to move; 0: any" example:"50"`
	// PerMinute bounds the tunnels that are asked to move.
	PerMinute int `koanf:"per_minute" min:"1" doc:"tunnels that this replica asks to move in a minute, at most" example:"300"`
}

func (s Store) validate(check *config.Check) {
	if s.Kind != StoreRedis {
		return
	}
	check.Required("store.address", s.Address)
	for address := range strings.SplitSeq(s.Address, ",") {
		if s.Address != "" {
			check.Dial("store.address", strings.TrimSpace(address))
		}
	}
	several := strings.Contains(s.Address, ",")
	switch {
	case s.Mode == "standalone" && several:
		check.Refuse("store.address", "allowed: one host:port, since store.mode is standalone")
	case s.Mode == "sentinel" && s.Master == "":
		check.Refuse("store.master", "required, since store.mode is sentinel")
	case s.Mode != "sentinel" && s.Master+s.SentinelUsername+s.SentinelPasswordFile != "":
		check.Refuse("store.master", "allowed: only with store.mode: sentinel, like sentinel_username and sentinel_password_file")
	case s.Mode == "cluster" && s.Database != 0:
		check.Refuse("store.database", "allowed: 0, since store.mode is cluster")
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		check.Refuse("store.tls.cert_file", "allowed: only together with key_file")
	}
	if !s.TLS.Enabled && s.TLS != (StoreTLS{}) {
		check.Refuse("store.tls.enabled", "required to be true, since other keys of store.tls are set")
	}
	if s.Prefix == "" || len(s.Prefix) > 64 || strings.Trim(s.Prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-") != "" {
		check.Refuse("store.prefix", "allowed: 1 to 64 letters, digits and .:_-")
	}
}

func (p Peer) validate(check *config.Check, s Store) {
	if s.Kind != StoreRedis || p.Listen == "" {
		return
	}
	check.Listen("peer.listen", p.Listen, false)
	check.Required("peer.secret_file", p.SecretFile)
	if p.Advertise != "" {
		check.Dial("peer.advertise", p.Advertise)
	}
}
