package session

import (
	"sync/atomic"
	"time"
)

// Identity is who a verified token speaks for.
type Identity struct {
	Tenant   string
	Subject  string
	Issuer   string
	TokenID  string
	Tier     string
	Pod      string // the pod that the token was issued for; may be empty
	Expires  time.Time
	IssuedAt time.Time // zero when the token does not say
	Origin   any       // what the verifier made of the token, for whoever asks it again about this identity
}

// same says whether two tokens speak for the same subject: what may resume a tunnel, or renew its token.
func (i Identity) same(other Identity) bool {
	return i.Tenant == other.Tenant && i.Subject == other.Subject && i.Issuer == other.Issuer
}

// Bearer holds the identity that a tunnel or a plain stream has now. A tunnel's changes when its token is renewed.
type Bearer struct{ now atomic.Pointer[Identity] }

// NewBearer makes a Bearer of who.
func NewBearer(who Identity) *Bearer {
	b := &Bearer{}
	b.now.Store(&who)
	return b
}

// Identity is who it is now.
func (b *Bearer) Identity() Identity { return *b.now.Load() }

func (b *Bearer) take(who Identity) { b.now.Store(&who) }
