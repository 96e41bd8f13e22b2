package ui_test

import (
	"fmt"
	"time"
)

// A name as somebody with the store's password may choose it for a replica.
const hostileReplica = `gw-<img src=x onerror=window.pwned=1>`

// alone is what a single gateway tells that shares nothing.
func alone() object {
	return object{"self": "gw-7c9f-x2x4q", "store": object{"kind": "memory", "up": true, "since": ago(74 * time.Hour)}, "relays": []object{}, "relays_total": 0,
		"replicas": []object{{"id": "gw-7c9f-x2x4q", "name": "gw-7c9f-x2x4q", "address": "", "version": "v0.9.2", "started": ago(74 * time.Hour), "draining": false, "tunnels": 61, "streams": 394, "self": true}},
		"leases":   object{"held": 0, "lost": 0}, "resumes": object{"same": 388, "relayed": 0, "refused": 2, "lost": 12}}
}

// several is the usual day of a gateway that is one of four, of which one drains; two of its tunnels come through others.
func several() data {
	d := busy()
	replica := func(name string, tunnels, streams int, draining, self bool) object {
		return object{"id": name + "/5f1c09a2", "name": name, "address": "10.1.2.3:8444", "version": "v0.9.2", "started": ago(time.Duration(tunnels) * time.Hour),
			"draining": draining, "tunnels": tunnels, "streams": streams, "self": self}
	}
	d.cluster = object{"self": "gw-7c9f-x2x4q/5f1c09a2", "store": object{"kind": "redis", "up": true, "since": ago(26 * time.Hour)},
		"replicas": []object{replica("gw-7c9f-b8dkk", 58, 401, false, false), replica("gw-7c9f-x2x4q", len(d.tunnels), len(d.streams), false, true), replica("gw-7c9f-zz9r4", 12, 40, true, false),
			replica(hostileReplica, 49, 320, false, false)},
		"relays": []object{relay(1, "gw-7c9f-b8dkk"), relay(2, "gw-7c9f-zz9r4"), relay(3, hostileReplica)}, "relays_total": 3,
		"leases": object{"held": len(d.tunnels), "lost": 1}, "resumes": object{"same": 212, "relayed": 61, "refused": 4, "lost": 3}}
	for i, t := range d.tunnels {
		t["replica"], t["via"] = "gw-7c9f-x2x4q", ""
		if i < 2 {
			t["via"] = []string{"gw-7c9f-b8dkk", hostileReplica}[i]
		}
	}
	return d
}

func relay(n int, owner string) object {
	return object{"tunnel": fmt.Sprintf("e2dbe3686a73ebe76bbfc0516dd8%04x", n), "owner": owner, "client": fmt.Sprintf("10.0.7.%d", n), "since": ago(time.Duration(n) * 17 * time.Minute),
		"sent": n * 48112004, "received": n * 912006}
}

// degraded is several whose Redis has been away for seven minutes.
func degraded() data {
	d := several()
	d.cluster["store"] = object{"kind": "redis", "up": false, "since": ago(7 * time.Minute), "error": "dial tcp 10.1.0.9:6379: connection refused <b>"}
	return d
}

// drains is how far a drain is of which some seconds are left.
func drains(left time.Duration) object {
	now := time.Now()
	return object{"draining": true, "reason": "signal_term", "since": now.Add(left - 40*time.Second), "deadline": now.Add(left), "tunnels": 12, "streams": 87, "moved": 48, "ended": 0, "phase": "moving"}
}
