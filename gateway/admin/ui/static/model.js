// What the page knows, and how it hangs together: tunnels and streams by tenant, streams by tunnel and backend.
import { num, when } from './format.js';

const keepPoints = 15 * 60 * 1000; // ms
const keepEvents = 1000;

export class Model {
  constructor() {
    this.offset = 0; // the gateway's clock minus this machine's, in ms
    this.tunnels = new Map();
    this.streams = [];
    this.backends = new Map();
    this.limits = new Map(); // what api/tenants tells, by tenant
    this.cluster = null; // what api/replicas tells
    this.have = new Set(); // lists that have been answered
    this.without = new Map(); // lists that this gateway does not answer → why
    this.version = 0; // of all that can be filtered
    this.relate();
    this.restart();
  }

  restart() { this.live = null; this.drain = null; this.points = []; this.events = []; this.lastEvent = 0; this.version++; }

  // now is the gateway's time as far as it is known, in ms.
  now() { return Date.now() + this.offset; }

  // takeLive takes an answer of api/live and says whether it is of a gateway that was started anew.
  takeLive(answer) {
    const anew = this.live && (this.live.started !== answer.started || this.live.instance !== answer.instance);
    if (anew) this.restart();
    const now = when(answer.now);
    if (now !== undefined) this.offset = now - Date.now();
    this.live = answer;
    let last = this.points.length ? this.points.at(-1).t : 0;
    for (const p of Array.isArray(answer.history) ? answer.history : []) {
      const t = when(p?.t);
      if (t === undefined || t <= last) continue;
      this.points.push({ ...p, t });
      last = t;
    }
    const from = this.now() - keepPoints;
    const old = this.points.findIndex((p) => p.t >= from);
    this.points.splice(0, old < 0 ? this.points.length : old);
    return anew;
  }

  // last is the time of the newest point, for asking what came after.
  last() { return this.points.length ? new Date(this.points.at(-1).t).toISOString() : ''; }

  // takeEvents takes an answer of api/events and says whether all must be asked again: the gateway counts anew.
  takeEvents(answer) {
    const last = num(answer?.last);
    if (last !== undefined && last < this.lastEvent) { this.events = []; this.lastEvent = 0; this.version++; return true; }
    for (const e of Array.isArray(answer?.events) ? answer.events : []) {
      if (!(num(e?.id) > this.lastEvent)) continue;
      this.lastEvent = e.id;
      this.events.push({ ...e, kind: String(e.kind ?? ''), t: when(e.time) ?? this.now() });
      this.version++;
    }
    this.events.splice(0, this.events.length - keepEvents);
    return false;
  }

  takeTunnels(list) {
    const was = this.tunnels;
    const at = Date.now();
    this.tunnels = new Map();
    for (const given of list) {
      const t = Object.assign(given, { key: String(given.id ?? ''), tenant: String(given.tenant ?? ''), since: when(given.since), expires: when(given.token_expires) });
      pace(t, was.get(t.key), at);
      this.tunnels.set(t.key, t);
    }
    this.have.add('tunnels');
    this.relate();
  }

  takeStreams(list) {
    const was = new Map(this.streams.map((s) => [s.key, s]));
    const at = Date.now();
    const read = list.map((given) => {
      const s = Object.assign(given, { tunnel: String(given.tunnel ?? ''), id: String(given.id ?? ''), tenant: String(given.tenant ?? ''), since: when(given.since),
        bytes_sent: num(given.sent), bytes_received: num(given.received) });
      s.key = `${s.tunnel} ${s.id}`;
      pace(s, was.get(s.key), at);
      return s;
    });
    this.streams = [...new Map(read.map((s) => [s.key, s])).values()]; // one may be on two pages, if the list moved meanwhile
    this.have.add('streams');
    this.relate();
  }

  takeBackends(list) {
    const now = this.now();
    this.backends = new Map(list.map((b) => [String(b.name ?? ''), { ...b, name: String(b.name ?? ''), pools: Array.isArray(b.pools) ? b.pools : [],
      retry: when(b.retry_at) ?? (b.retry_after_ms > 0 ? now + b.retry_after_ms : undefined) }]));
    this.have.add('backends');
    this.relate();
  }

  takeTenants(list) {
    this.limits = new Map(list.map((t) => [String(t.tenant ?? t.name ?? t.id ?? ''), t]));
    this.have.add('tenants');
  }

  takeReplicas(answer) {
    const { self, store, replicas, relays, relays_total: total, leases, resumes } = answer || {};
    const lanes = objects(relays).map((r) => ({ ...r, key: String(r.tunnel ?? ''), since: when(r.since) }));
    this.cluster = { at: Date.now(), self: String(self ?? ''), store: { ...store, since: when(store?.since) }, leases: { ...leases }, resumes: { ...resumes },
      replicas: objects(replicas).map((r) => ({ ...r, key: String(r.id ?? r.name ?? ''), started: when(r.started) })), relays: lanes, total: num(total) ?? lanes.length };
  }

  takeDrain(answer) { this.drain = { ...answer, since: when(answer?.since), deadline: when(answer?.deadline) }; }

  // relate makes the indexes that the views and the filter need.
  relate() {
    this.byTunnel = group(this.streams, (s) => s.tunnel);
    this.byTenant = group(this.tunnels.values(), (t) => t.tenant);
    this.plain = group(this.streams.filter((s) => !this.tunnels.has(s.tunnel)), (s) => s.tenant);
    this.byBackend = group(this.streams, (s) => String(s.backend ?? ''));
    for (const list of [this.tunnels.values(), this.backends.values()]) for (const x of list) x.known = undefined;
    for (const b of this.backends.values()) b.flows = this.byBackend.get(b.name) || [];
    this.version++;
  }

  // about is what the filter can find an item by. It is worked out when somebody filters, and kept until the item, or
  // what hangs on it, is told anew.
  about(x) {
    x.known ??= this.words(x);
    return x.known;
  }

  words(x) {
    if (x.kind !== undefined && x.t !== undefined) {
      return { tenant: x.tenant, id: x.tunnel, route: x.route, backend: x.backend, pod: x.pod, kind: x.kind, text: x.text, code: x.code };
    }
    if (x.tunnel !== undefined) {
      const t = this.tunnels.get(x.tunnel);
      return { tenant: x.tenant, route: x.route, pod: x.pod ?? t?.pod, id: [x.tunnel, x.id], state: t?.state, backend: x.backend, mode: x.mode, app: [x.app, x.client],
        subject: x.subject, peer: t?.peer, instance: x.instance, replica: t?.replica, via: t?.via, tier: t?.tier, priority: x.priority };
    }
    if (x.pools) {
      return { backend: x.name, address: x.address, state: x.breaker, mode: [x.mode, ...distinct(x.flows, 'mode')], tenant: [...distinct(x.flows, 'tenant'), ...x.pools.map((p) => p.tenant)],
        route: distinct(x.flows, 'route'), pod: distinct(x.flows, 'pod'), id: distinct(x.flows, 'tunnel') };
    }
    const streams = this.byTunnel.get(x.key) || [];
    return { tenant: x.tenant, route: distinct(streams, 'route'), pod: x.pod, id: x.key, state: x.state, backend: distinct(streams, 'backend'), mode: distinct(streams, 'mode'),
      app: distinct(streams, 'app'), subject: x.subject, peer: x.peer, instance: x.instance, replica: x.replica, via: x.via, tier: x.tier, issuer: x.issuer };
  }
}

function objects(list) { return Array.isArray(list) ? list.filter((x) => x && typeof x === 'object') : []; }

function distinct(list, field) { return new Set(list.map((x) => x[field])); }

export function group(list, keyOf) {
  const groups = new Map();
  for (const item of list) {
    const key = keyOf(item);
    const there = groups.get(key);
    if (there) there.push(item); else groups.set(key, [item]);
  }
  return groups;
}

// pace works out the rates of an older gateway's items from how their totals grew since the last answer.
function pace(now, was, at) {
  now.at = at;
  for (const way of ['sent', 'received']) {
    const rate = `${way}_rate`, total = `bytes_${way}`;
    if (num(now[rate]) !== undefined || !was) continue;
    const seconds = (at - was.at) / 1000;
    if (seconds > 0.5 && now[total] >= was[total]) now[rate] = (now[total] - was[total]) / seconds;
    else now[rate] = was[rate];
  }
}

export function sum(list, field) {
  let total;
  for (const item of list) if (num(item[field]) !== undefined) total = (total ?? 0) + item[field];
  return total;
}
