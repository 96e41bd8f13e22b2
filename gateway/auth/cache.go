package auth

import (
	"crypto/sha256"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const cacheSize = 10_000

// cache remembers verified tokens by hash, so that neither memory nor a dump of it holds tokens.
type cache struct {
	entries *lru.Cache[[sha256.Size]byte, verified]
}

// verified is a token that passed, with the keys it passed by.
type verified struct {
	identity Identity
	deadline time.Time // the expiry with leeway
	issuer   *issuer
	keys     *keySet
}

func newCache() (*cache, error) {
	entries, err := lru.New[[sha256.Size]byte, verified](cacheSize)
	if err != nil {
		return nil, err
	}
	return &cache{entries}, nil
}

// get returns what is known about a token, unless its issuer's keys have changed since: comparing the generation instead
// of clearing leaves no gap for a check that began with the old keys and ends after the clearing.
func (c *cache) get(sum [sha256.Size]byte) (verified, bool) {
	e, ok := c.entries.Get(sum)
	if !ok {
		return verified{}, false
	}
	if e.issuer.source.current() != e.keys {
		c.entries.Remove(sum)
		return verified{}, false
	}
	return e, true
}

func (c *cache) put(sum [sha256.Size]byte, e verified) { c.entries.Add(sum, e) }

func (c *cache) drop(sum [sha256.Size]byte) { c.entries.Remove(sum) }
