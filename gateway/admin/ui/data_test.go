package ui_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
)

type object map[string]any

// data is what a gateway of the tests tells.
type data struct {
	tunnels, streams, backends, tenants []object
	happened                            []event
	cluster, drain                      object
}

type event struct {
	before time.Duration // how long before the test began
	about  object
}

// Names as strangers may choose them.
const (
	hostileTenant  = `<img src=x onerror=window.pwned=1>`
	hostileSubject = `"><script>window.pwned=1</script>`
	hostilePod     = `<svg/onload=window.pwned=1>`
	turnedTenant   = "pay\u202estnem/api"
)

var epoch = time.Now() // what ages are counted from, so that all tests of a run see the same

func ago(d time.Duration) time.Time { return epoch.Add(-d) }

// busy is a gateway on a usual day: a dozen tenants, one backend down, one recovering, and an outage nine minutes ago.
func busy() data {
	r := rand.New(rand.NewPCG(7, 11))
	d := data{backends: backends(), cluster: alone()}
	for i, tenant := range []string{"payments/api", "payments/ledger", "search/indexer", "search/query", "shop/web", "shop/cart", "ops/backup", "ops/deploy",
		"data/warehouse", "data/etl", "mail/relay", hostileTenant, turnedTenant} {
		for j := range 2 + (i*7)%9 {
			d.tunnel(r, tenant, j, (i*5+j*3)%14)
		}
		d.tenants = append(d.tenants, object{"tenant": tenant, "tier": []string{"default", "gold"}[i%2],
			"opens": 4000 * i, "refused": i, "bytes_sent": 7e9, "bytes_received": 6e8, "sent_rate": 2.1e6,
			"received_rate": 2e5, "waiting": i % 3, "retained": 90000 * i, "limits": object{"opens": 600, "burst": 100, "tunnels": 20, "streams": 400, "bandwidth": 0}, "left": object{"opens": 88, "bandwidth": -1}})
	}
	d.streams = append(d.streams, object{"tunnel": "plain", "id": "plain-1", "tenant": "ops/deploy", "subject": "ci", "route": "git", "backend": "git", "mode": "passthrough",
		"client": "10.3.4.5:50122", "instance": "gw-7c9f-x2x4q", "since": ago(3 * time.Minute), "open_ms": 7.5, "sent": 120000, "received": 3000, "sent_rate": 400, "received_rate": 12})
	d.outage(r)
	return d
}

// many is a gateway with so many tunnels and streams.
func many(tunnels, streams int) data {
	r := rand.New(rand.NewPCG(3, 5))
	d := data{backends: backends(), cluster: alone()}
	for i := range tunnels {
		d.tunnel(r, fmt.Sprintf("team-%02d/service-%d", i%60, i%4), i, streams/tunnels)
	}
	d.outage(r)
	return d
}

func (d *data) tunnel(r *rand.Rand, tenant string, n, streams int) {
	id := fmt.Sprintf("t-%08x", r.Uint32())
	state, subject, pod := "connected", "system:serviceaccount:"+tenant, fmt.Sprintf("%.12s-%s-%05x", "web-frontend", "6b9d", r.Uint32()>>12)
	if r.IntN(12) == 0 {
		state = "detached"
	}
	if tenant == hostileTenant {
		subject, pod = hostileSubject, hostilePod
	}
	t := object{"id": id, "tenant": tenant, "subject": subject, "peer": fmt.Sprintf("10.%d.%d.%d:4%04d", r.IntN(4), r.IntN(250), r.IntN(250), r.IntN(9999)), "pod": pod, "state": state,
		"since": ago(time.Duration(r.IntN(90000)) * time.Second), "token_expires": epoch.Add(time.Duration(120+r.IntN(3400)) * time.Second), "streams": streams,
		"opened": streams + r.IntN(4000), "bytes_sent": r.Int64N(8e9), "bytes_received": r.Int64N(9e8), "bytes_replayed": r.IntN(90000), "resumes": r.IntN(6),
		"rtt_ms": math.Round(r.Float64()*400) / 10, "instance": "gw-7c9f-x2x4q", "tier": "default", "issuer": "https://kubernetes.default.svc.cluster.local"}
	var sent, received float64
	for s := range streams {
		one := d.stream(r, t, n+s, s)
		sent, received = sent+one["sent_rate"].(float64), received+one["received_rate"].(float64)
		d.streams = append(d.streams, one)
	}
	t["sent_rate"], t["received_rate"] = sent, received
	d.tunnels = append(d.tunnels, t)
}

func (d *data) stream(r *rand.Rand, t object, n, id int) object {
	way := []struct{ route, backend, mode, priority string }{{"git", "git", "passthrough", "high"}, {"orders-db", "bastion", "forward", "normal"},
		{"logs", "logs", "passthrough", "low"}, {"wiki", "wiki", "forward", "normal"}}[n%4]
	return object{"tunnel": t["id"], "id": id*2 + 1, "tenant": t["tenant"], "subject": t["subject"], "pod": t["pod"], "route": way.route, "backend": way.backend, "mode": way.mode,
		"priority": way.priority, "app": []string{"psql", "git-sync", "vector", "curl"}[n%4], "client": fmt.Sprintf("127.0.0.1:%d", 30000+r.IntN(20000)), "instance": t["instance"],
		"since": ago(time.Duration(r.IntN(7000)) * time.Second), "open_ms": math.Round(r.Float64()*900) / 10, "sent": r.Int64N(3e8), "received": r.Int64N(4e7),
		"sent_rate": math.Round(r.ExpFloat64() * 60000), "received_rate": math.Round(r.ExpFloat64() * 9000)}
}

func (d *data) drop(id string) {
	d.tunnels = slices.DeleteFunc(d.tunnels, func(t object) bool { return t["id"] == id })
	d.streams = slices.DeleteFunc(d.streams, func(s object) bool { return s["tunnel"] == id })
}

func backends() []object {
	pool := func(tenant string, channels int) object {
		return object{"tenant": tenant, "dialing": channels % 2, "channels": channels, "waiting": channels / 9, "reused": channels * 31,
			"connections": []object{{"id": "10.0.0.9:51234", "server": "SSH-2.0-OpenSSH_9.6", "age_ms": 412000, "channels": channels, "opened": channels * 40, "retired": false},
				{"id": "10.0.0.9:51180", "server": "SSH-2.0-OpenSSH_9.6", "age_ms": 3612000, "channels": 1, "opened": 900, "retired": true}}}
	}
	return []object{
		{"name": "git", "address": "git.internal:22", "breaker": "closed", "mode": "auto", "failures": 0, "up": true, "pools": []object{}},
		{"name": "bastion", "address": "bastion.internal:22", "breaker": "closed", "mode": "auto", "failures": 1, "up": true,
			"pools": []object{pool("payments/api", 9), pool("search/indexer", 4), pool("data/warehouse", 18), pool(hostileTenant, 2)}},
		{"name": "logs", "address": "logs.internal:22", "breaker": "open", "mode": "auto", "failures": 5, "last_failure_at": ago(12 * time.Second), "retry_at": ago(-48 * time.Second),
			"last_failure": "FL-S402 the backend refused the connection", "up": false, "pools": []object{}},
		{"name": "wiki", "address": "wiki.internal:2222", "breaker": "half-open", "mode": "auto", "failures": 5, "last_failure_at": ago(61 * time.Second), "last_failure": "FL-S401 the backend did not answer", "up": false, "pools": []object{}},
		{"name": "reports", "address": "reports.internal:22", "breaker": "closed", "mode": "closed", "changed_by": "olga", "failures": 2, "last_failure_at": ago(4 * time.Minute), "up": true, "pools": []object{}},
	}
}

// outage is fifteen minutes of events: a few tunnels come and go; nine minutes ago a network was away for half a minute;
// two minutes ago a backend failed.
func (d *data) outage(r *rand.Rand) {
	add := func(before time.Duration, kind string, t object, more object) {
		about := object{"kind": kind}
		if t != nil {
			about["tenant"], about["tunnel"], about["pod"] = t["tenant"], t["id"], t["pod"]
		}
		for k, v := range more {
			about[k] = v
		}
		d.happened = append(d.happened, event{before, about})
	}
	for i, t := range d.tunnels {
		if i >= 80 {
			break
		}
		switch at := 9*time.Minute + time.Duration(i*211)*time.Millisecond; {
		case i%3 == 0:
			add(at, "detach", t, object{"text": "the connection was reset", "code": "FL-N104"})
			if i%15 == 0 {
				add(at-61*time.Second, "lost", t, object{"text": "not resumed within 60 s", "code": "FL-N107"})
			} else {
				add(at-time.Duration(3000+r.IntN(25000))*time.Millisecond, "resume", t, object{"text": "after 12 s, 4 kB sent again"})
			}
		case i%7 == 1:
			add(time.Duration(r.IntN(890))*time.Second, "connect", t, nil)
		case i%11 == 3:
			add(time.Duration(r.IntN(500))*time.Second, "refused", t, object{"route": "orders-db", "text": "no rule allows it", "code": "FL-A203"})
		}
	}
	add(2*time.Minute, "breaker", nil, object{"backend": "logs", "text": "open after 5 failures", "code": "FL-S402"})
	add(6*time.Minute, "reload", nil, object{"text": "policy: 2 rules changed"})
	add(40*time.Second, "revoked", d.tunnels[1], object{"text": `token "ab12" revoked by operator`, "code": "FL-A205"})
	add(5*time.Minute, "unheard-of", d.tunnels[2], object{"text": "a kind of the future"})
	slices.SortFunc(d.happened, func(a, b event) int { return int(b.before - a.before) })
}

func (d *data) events(_ time.Time, after string) []object {
	list := []object{}
	begin, _ := strconv.Atoi(after)
	for i, e := range d.happened {
		if i+1 > begin {
			one := object{"id": i + 1, "time": ago(e.before)}
			for k, v := range e.about {
				one[k] = v
			}
			list = append(list, one)
		}
	}
	return list
}

func (d *data) totals(now time.Time) object {
	s := now.Sub(epoch).Seconds()
	detached := 0
	for _, t := range d.tunnels {
		if t["state"] == "detached" {
			detached++
		}
	}
	return object{"tunnels": len(d.tunnels), "detached": detached, "streams": len(d.streams), "opens_total": 812345 + int(s*40), "refused_total": 5120 + int(s), "failed_total": 431 + int(s/3),
		"bytes_sent": 8.41e12 + s*9e6, "bytes_received": 9.3e11 + s*8e5, "resumes_total": 388, "lost_total": 12, "pressure": .34}
}

// history is a point each two seconds, on even seconds, as smooth and as rough as a real one.
func (d *data) history(now, since time.Time) []object {
	points := []object{}
	for t := now.Add(-15 * time.Minute).Truncate(2 * time.Second); !t.After(now); t = t.Add(2 * time.Second) {
		if !t.After(since) {
			continue
		}
		minutes := t.Sub(epoch).Minutes()
		noise := rand.New(rand.NewPCG(uint64(t.Unix()), 1))
		wave := 1 + .3*math.Sin(minutes/2) + .12*noise.NormFloat64()
		p := object{"t": t, "tunnels": len(d.tunnels), "detached": 3, "streams": int(float64(len(d.streams)) * (1 + .05*math.Sin(minutes))), "opens": 38 * wave, "refused": .4 * math.Abs(noise.NormFloat64()),
			"failed": 0.0, "sent": 8.6e6 * wave, "received": 7.2e5 * (2 - wave) * 1.2, "p50_ms": 9 * wave, "p95_ms": 34 * wave, "p99_ms": 80 * (wave + .5*math.Abs(noise.NormFloat64())),
			"resumes": 0, "lost": int(minutes+2000) % 150 / 149, "pressure": .3 + .1*math.Sin(minutes/3)}
		if minutes > -9.2 && minutes < -8.6 {
			p["tunnels"], p["detached"], p["sent"], p["received"], p["resumes"] = len(d.tunnels)-2, 21, 3.1e6*wave, 3e5, 2
			p["opens"], p["p50_ms"], p["p95_ms"], p["p99_ms"] = 0.0, nil, nil, nil
		}
		if minutes > -8.1 && minutes < -7.9 {
			p["lost"] = 1
		}
		if minutes > -2 {
			p["failed"], p["p95_ms"] = 2.2*wave, 90*wave
		}
		points = append(points, p)
	}
	return points
}
