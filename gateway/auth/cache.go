package auth

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const cacheSize = 10_000

// cache remembers verified tokens by hash, so that neither memory nor a dump of it holds tokens; only those that are
// reviewed are kept, in their identity's Credential.
type cache struct {
	entries *lru.Cache[digest, verified]
}

// verified is a token that passed, with the keys it passed by.
type verified struct {
	identity Identity
	deadline time.Time // the expiry with leeway
	issuer   *issuer
	keys     *keySet
}

func newCache() (*cache, error) {
	entries, err := lru.New[digest, verified](cacheSize)
	if err != nil {
		return nil, err
	}
	return &cache{entries}, nil
}

// get returns what is known about a token, unless its issuer or the issuer's keys have changed since: comparing the
// generation instead of clearing leaves no gap for a check that began with the old ones and ends after the clearing.
func (c *cache) get(sum digest, now issuers) (verified, bool) {
	e, ok := c.entries.Get(sum)
	if !ok {
		return verified{}, false
	}
	if now[e.identity.Issuer] != e.issuer || e.issuer.source.current() != e.keys {
		c.entries.Remove(sum)
		return verified{}, false
	}
	return e, true
}

func (c *cache) put(sum digest, e verified) { c.entries.Add(sum, e) }

func (c *cache) drop(sum digest) { c.entries.Remove(sum) }
