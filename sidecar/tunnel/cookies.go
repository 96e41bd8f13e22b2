package tunnel

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Bounds of what an endpoint may have kept for it: the gateway takes headers of 16 KiB, most of them the token's.
const (
	maxCookies     = 8
	maxCookieBytes = 4 << 10
)

// jar keeps the affinity cookies of one endpoint, by which a sticky load balancer leads back to the replica that owns a
// tunnel. It is a cookie jar as of RFC 6265 that is bounded and can be remembered.
type jar struct {
	mu    sync.Mutex
	inner *cookiejar.Jar
	kept  []Cookie
}

// Cookie is an affinity cookie as it is remembered.
type Cookie struct {
	Name    string    `json:"name"`
	Value   string    `json:"value"`
	Domain  string    `json:"domain,omitempty"`
	Path    string    `json:"path,omitempty"`
	Secure  bool      `json:"secure,omitempty"`
	Expires time.Time `json:"expires,omitzero"` // zero: with the session
}

func newJar() *jar {
	inner, _ := cookiejar.New(nil) // cannot fail; without a list of public suffixes, since a jar sees one host only
	return &jar{inner: inner}
}

// SetCookies takes what an answer sets. What would exceed the bounds is left out.
func (j *jar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range cookies {
		if k := kept(c); j.room(k) {
			j.keep(k)
			j.inner.SetCookies(u, []*http.Cookie{c})
		}
	}
}

// kept is a cookie as it is remembered, with the time of its end instead of its age.
func kept(c *http.Cookie) Cookie {
	k := Cookie{Name: c.Name, Value: c.Value, Domain: c.Domain, Path: c.Path, Secure: c.Secure, Expires: c.Expires}
	switch {
	case c.MaxAge < 0:
		k.Expires = time.Unix(1, 0)
	case c.MaxAge > 0:
		k.Expires = time.Now().Add(time.Duration(min(c.MaxAge, 1<<30)) * time.Second).Truncate(time.Second)
	}
	return k
}

func (k Cookie) size() int { return len(k.Name) + len(k.Value) + len(k.Domain) + len(k.Path) }

func (k Cookie) same(o Cookie) bool {
	return k.Name == o.Name && k.Domain == o.Domain && k.Path == o.Path
}

func (k Cookie) over() bool { return !k.Expires.IsZero() && !k.Expires.After(time.Now()) }

// room says whether a cookie may be kept. Called with mu held.
func (j *jar) room(k Cookie) bool {
	n, size := 1, k.size()
	for _, o := range j.kept {
		if !k.same(o) && !o.over() {
			n, size = n+1, size+o.size()
		}
	}
	return n <= maxCookies && size <= maxCookieBytes
}

// keep remembers a cookie in the place of the one that it replaces. Called with mu held.
func (j *jar) keep(k Cookie) {
	j.kept = slices.DeleteFunc(j.kept, func(o Cookie) bool { return k.same(o) || o.over() })
	if !k.over() {
		j.kept = append(j.kept, k)
	}
}

// Cookies returns what a request is to carry.
func (j *jar) Cookies(u *url.URL) []*http.Cookie {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.inner.Cookies(u)
}

// list returns what is kept.
func (j *jar) list() []Cookie {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(j.kept), Cookie.over)
}

// replace makes the jar hold these cookies of endpoint and no others.
func (j *jar) replace(endpoint string, cookies []Cookie) {
	fresh := newJar()
	if u := cookieURL(endpoint); u != nil {
		for _, k := range cookies {
			fresh.SetCookies(u, []*http.Cookie{{Name: k.Name, Value: k.Value, Domain: k.Domain, Path: k.Path, Secure: k.Secure, Expires: k.Expires}})
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inner, j.kept = fresh.inner, fresh.kept
}

// cookieURL is an endpoint as cookie jars know it.
func cookieURL(endpoint string) *url.URL {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil
	}
	u.Scheme = map[string]string{"wss": "https", "ws": "http"}[u.Scheme]
	return u
}

// copyOf makes a jar with the cookies of another.
func copyOf(j *jar, endpoint string) *jar {
	c := newJar()
	c.replace(endpoint, j.list())
	return c
}
