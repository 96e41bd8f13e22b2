package tunnel

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/learned"
)

// startHAProxy starts a sticky load balancer in front of gateways, and returns the endpoint.
func startHAProxy(t *testing.T, gateways ...*gateway) Endpoint {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()
	cfg := "defaults\n  mode http\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n  timeout tunnel 1h\n" +
		"frontend in\n  bind fd@3\n  default_backend gateways\n" +
		"backend gateways\n  balance roundrobin\n  option redispatch\n  retries 1\n  cookie FLREPLICA insert indirect nocache\n"
	for i, g := range gateways {
		cfg += fmt.Sprintf("  server g%d %s cookie replica-%d\n", i, g.l.Addr(), i)
	}
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	require.NoError(t, os.WriteFile(path, []byte(cfg), 0o600))
	cmd := exec.Command("haproxy", "-db", "-f", path)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, []*os.File{file}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	return Endpoint{URL: "ws://" + l.Addr().String() + "/v1/tunnel"}
}

func openMemory(t *testing.T, path string) *learned.File {
	m, err := learned.Open(learned.Config{Path: path, Logger: discard()})
	require.NoError(t, err)
	return m
}

// A sticky load balancer leads a resume back to the replica that owns the tunnel, because its cookie is kept; and after a
// restart to the one that was used before. It is dropped when it leads nowhere.
//
// Verifies: R8.7
func TestAffinityCookiesLeadBackToTheOwner(t *testing.T) {
	gateways := []*gateway{newGateway(t), newGateway(t), newGateway(t)}
	lb := startHAProxy(t, gateways...)
	state := filepath.Join(t.TempDir(), "state.json")
	memory := openMemory(t, state)
	use := func(c *Config) { c.Endpoints, c.Memory = []Endpoint{lb}, memory }
	r := startPool(t, use)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	owner := owning(gateways, s.Tunnel().Name())
	require.NotNil(t, owner)
	for n := range uint64(6) {
		for _, g := range gateways {
			g.cut()
		}
		eventually(t, "resumed", func() bool { return s.Tunnel().Stats().Resumes == n+1 && r.Ready() })
	}
	require.NoError(t, s.Tunnel().Err())
	for _, g := range gateways {
		if g != owner {
			assert.Zero(t, g.count(), "nobody else was asked")
		}
	}
	r.stop()
	memory.Flush()
	content, err := os.ReadFile(state)
	require.NoError(t, err)
	assert.Contains(t, string(content), "FLREPLICA")
	assert.NotContains(t, string(content), "token-1")

	memory = openMemory(t, state)
	r = startPool(t, use)
	eventually(t, "ready after a restart", r.Ready)
	s = open(t, r, link.Normal)
	assert.Same(t, owner, owning(gateways, s.Tunnel().Name()), "it goes where it was before")

	// The owner goes away: new tunnels must not be led back to it.
	owner.with(func() { owner.turn = func() error { return errs.New(errs.Draining, "going away") } })
	for _, tun := range owner.all() {
		tun.SendGoAway(link.GoAway{Reason: errs.New(errs.Draining, "moving"), Deadline: time.Minute})
	}
	eventually(t, "another replica has the new tunnel", func() bool {
		other, err := r.Open(link.OpenRequest{Route: "git"})
		if err != nil {
			return false
		}
		defer other.Reset(nil)
		g := owning(gateways, other.Tunnel().Name())
		return g != nil && g != owner
	})
	assert.NoError(t, s.Tunnel().Err())
}

// When the replica does not know the tunnel any more, its cookie is of no use.
func TestACookieThatLeadsNowhereIsDropped(t *testing.T) {
	gateways := []*gateway{newGateway(t), newGateway(t)}
	lb := startHAProxy(t, gateways...)
	r := startPool(t, func(c *Config) { c.Endpoints = []Endpoint{lb} })
	eventually(t, "ready", r.Ready)
	owner := owning(gateways, r.Status().Tunnels[0].ID)
	e := r.ends.all()[0]
	before := e.jar.list()
	require.Len(t, before, 1)
	owner.forget()
	owner.cut()
	eventually(t, "a tunnel of another replica", func() bool {
		return r.Ready() && owning(gateways, r.Status().Tunnels[0].ID) != owner && owning(gateways, r.Status().Tunnels[0].ID) != nil
	})
	after := e.jar.list()
	require.Len(t, after, 1)
	assert.NotEqual(t, before[0].Value, after[0].Value)
}

func owning(gateways []*gateway, tunnel string) *gateway {
	for _, g := range gateways {
		for _, t := range g.all() {
			if t.Name() == tunnel {
				return g
			}
		}
	}
	return nil
}

func cookie(name, value string) *http.Cookie { return &http.Cookie{Name: name, Value: value} }

func names(j *jar) string {
	var all []string
	for _, c := range j.Cookies(cookieURL("wss://gw.example/v1/tunnel")) {
		all = append(all, c.Name+"="+c.Value)
	}
	return strings.Join(all, " ")
}

func TestTheJarIsBoundedAndKeepsToTheRules(t *testing.T) {
	u := cookieURL("wss://gw.example/v1/tunnel")
	j := newJar()
	j.SetCookies(u, []*http.Cookie{cookie("a", "1"), cookie("b", "2")})
	j.SetCookies(u, []*http.Cookie{cookie("a", "3")})
	assert.Equal(t, "a=3 b=2", names(j), "a later one replaces")
	j.SetCookies(u, []*http.Cookie{{Name: "b", MaxAge: -1}})
	assert.Equal(t, "a=3", names(j), "and may take back")
	j.SetCookies(u, []*http.Cookie{{Name: "else", Value: "x", Domain: "other.example"}, {Name: "deep", Value: "x", Path: "/admin"}})
	assert.Equal(t, "a=3", names(j), "what is for others is not sent")

	j = newJar()
	for i := range 100 {
		j.SetCookies(u, []*http.Cookie{cookie(fmt.Sprint("c", i), "v")})
	}
	assert.Len(t, j.list(), maxCookies)
	j.SetCookies(u, []*http.Cookie{cookie("c0", strings.Repeat("x", maxCookieBytes))})
	assert.Equal(t, "v", j.list()[0].Value, "too large to take the place of the one there is")

	c := newJar()
	c.replace("wss://gw.example/v1/tunnel", j.list())
	assert.Equal(t, names(j), names(c))
	c.replace("wss://gw.example/v1/tunnel", []Cookie{{Name: "old", Value: "1", Expires: time.Now().Add(-time.Hour)}, {Name: "new", Value: "1", Expires: time.Now().Add(time.Hour)}})
	assert.Equal(t, "new=1", names(c), "what has expired while nobody ran is gone")
	c.replace("wss://gw.example/v1/tunnel", nil)
	assert.Empty(t, names(c))
	assert.NotEmpty(t, names(j), "a copy is a copy")
}

// Refusals may set cookies, too.
func TestCookiesOfRefusalsAreKept(t *testing.T) {
	g := newGateway(t)
	g.with(func() {
		g.cookie = "FLREPLICA=two; Path=/"
		g.refuse = func(string) error { return errs.New(errs.Overloaded, "no room") }
	})
	r := startPool(t, nil, g)
	eventually(t, "kept", func() bool { return len(r.ends.all()[0].jar.list()) == 1 })
	eventually(t, "and sent", func() (sent bool) {
		g.with(func() { sent = strings.Contains(g.sent, "FLREPLICA=two") })
		return sent
	})
}
