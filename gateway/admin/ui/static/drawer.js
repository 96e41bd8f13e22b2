// The drawer at the side: one tenant, one tunnel or one stream, with all that is known of it.
import { $, attribute, el, reconcile, set, setBadge, setName, setTime } from './dom.js';
import { bytes, count, ms, name, num, plural, rate, span } from './format.js';
import { eventRow } from './events.js';
import { Path } from './path.js';
import { sum } from './model.js';

const cap = 200;
const long = new Set(['Subject', 'Issuer', 'Pod']); // facts that need the whole width

export class Drawer {
  constructor({ place, act, may }) {
    Object.assign(this, { place, act, may, node: $('drawer') });
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && !this.node.hidden && !document.querySelector('dialog[open]')) this.close();
    });
  }

  close() {
    this.place.go({ tunnel: '', stream: '', tenant: '' });
    if (this.from?.isConnected) this.from.focus();
  }

  update(model) {
    const { tenant, tunnel, stream } = this.place;
    const what = stream ? `stream ${tunnel} ${stream}` : tunnel ? `tunnel ${tunnel}` : tenant ? `tenant ${tenant}` : '';
    if (what !== this.what) {
      this.what = what;
      this.node.hidden = !what;
      document.body.classList.toggle('with-drawer', Boolean(what));
      if (!what) { this.node.replaceChildren(); return; }
      if (!this.node.contains(document.activeElement)) this.from = document.activeElement;
      this.build(stream ? 'Stream' : tunnel ? 'Tunnel' : 'Tenant');
      this.node.scrollTop = 0;
      this.node.focus({ preventScroll: true });
    }
    if (!what) return;
    if (stream) this.stream(model); else if (tunnel) this.tunnel(model); else this.tenant(model);
  }

  build(kind) {
    this.kind = el('span', { class: 'muted', text: kind });
    this.title = el('h2', { id: 'drawer-title', class: 'name' });
    this.state = el('span', { class: 'badge' });
    this.up = el('button', { type: 'button', class: 'quiet', hidden: true });
    this.gone = el('p', { class: 'gone', hidden: true });
    this.path = new Path();
    this.facts = el('dl', { class: 'facts-list' });
    this.listTitle = el('h3');
    this.list = el('tbody');
    this.table = el('table', { class: 'streams' }, el('thead', {}, el('tr', {}, ...['Stream', 'Route → backend', 'To client', 'From client', 'Age'].map((text, i) => el('th', { scope: 'col', class: i > 1 && 'number', text })))), this.list);
    this.capped = el('p', { class: 'muted cap' });
    this.eventsTitle = el('h3', { text: 'What happened to it' });
    this.events = el('ol', { class: 'events short' });
    this.end = el('button', { type: 'button', class: 'danger', text: 'End this tunnel…', hidden: true, click: () => this.askEnd() });
    this.only = el('button', { type: 'button', class: 'quiet', hidden: true });
    this.node.replaceChildren(
      el('header', {}, el('div', {}, el('span', { class: 'head' }, this.kind, this.state), this.title), el('button', { type: 'button', class: 'quiet close', 'aria-label': 'Close', text: '×', click: () => this.close() })),
      el('p', { class: 'buttons left' }, this.up, this.end), this.gone, this.path.node, this.facts, this.listTitle, this.table, this.capped, this.eventsTitle, this.events);
  }

  // missing says that what is looked at is not there, if so.
  missing(thing, model, what) {
    this.gone.hidden = Boolean(thing) || !model.have.has(`${what}s`);
    if (!thing) set(this.gone, `This ${what} is not here: it has ended, or another replica has it.`);
    this.state.hidden = !thing;
    return !thing;
  }

  tunnel(model) {
    const t = model.tunnels.get(this.place.tunnel);
    setName(this.title, this.place.tunnel);
    const streams = model.byTunnel?.get(this.place.tunnel) || [];
    this.showEvents(model.events.filter((e) => e.tunnel === this.place.tunnel));
    this.showUp(t && `Tenant ${name(t.tenant, 60)}`, { tenant: t?.tenant, tunnel: '', stream: '' });
    this.end.hidden = !t || !this.may();
    if (this.missing(t, model, 'tunnel')) { this.showStreams(model, []); return; }
    setBadge(this.state, t.state, t.state === 'connected' ? 'good' : 'warn');
    const used = new Map();
    for (const s of streams) { const key = String(s.backend ?? ''); used.set(key, (used.get(key) || 0) + 1); }
    const names = [...used].sort((a, b) => b[1] - a[1]);
    const only = names.length === 1 ? model.backends.get(names[0][0]) : undefined;
    this.path.update([sidecar(t, {}), ...between(t), replica(model, t), {
      icon: 'i-backend', kind: names.length === 1 ? 'Backend' : 'Backends', title: names.length === 1 ? names[0][0] : names.length ? plural(names.length, 'backend') : 'none in use', state: only?.breaker,
      lines: names.length === 1 ? [only?.address, plural(names[0][1], 'stream')] : names.slice(0, 6).map(([b, n]) => `${name(b, 60)}: ${plural(n, 'stream')}${model.backends.get(b)?.breaker === 'open' ? ', breaker open' : ''}`) }],
    [tunnelLink(t), ...peerLink(t), { lines: [plural(streams.length, 'stream')] }]);
    this.showFacts([['Tenant', t.tenant], ['Tier', t.tier], ['Subject', t.subject], ['Issuer', t.issuer], ['Pod', t.pod], ['Client address', t.peer], ['Comes through', t.via],
      ['Connected', t.since, `${span(Math.floor((model.now() - t.since) / 1000))} ago`], ['Token ends', t.expires, t.expires < model.now() ? 'over' : `in ${span(Math.floor((t.expires - model.now()) / 1000))}`],
      ['Sent', amount(t.bytes_sent, t.sent_rate)], ['Received', amount(t.bytes_received, t.received_rate)], ['Sent again', num(t.bytes_replayed) === undefined ? '' : bytes(t.bytes_replayed)],
      ['Resumes', num(t.resumes) === undefined ? '' : count(t.resumes)], ['Streams so far', num(t.opened) === undefined ? '' : count(t.opened)], ['Round trip', num(t.rtt_ms) === undefined ? '' : ms(t.rtt_ms)]]);
    this.showStreams(model, streams);
  }

  stream(model) {
    const { tunnel, stream } = this.place;
    const s = (model.byTunnel?.get(tunnel === '-' ? '' : tunnel) || []).find((x) => x.id === stream);
    const t = model.tunnels.get(tunnel);
    setName(this.title, s ? `${name(s.route, 60)} · ${name(s.id, 60)}` : stream);
    this.showUp(t ? `Tunnel ${name(t.key, 60)}` : s && `Tenant ${name(s.tenant, 60)}`, t ? { tunnel, stream: '', tenant: '' } : { tenant: s?.tenant, tunnel: '', stream: '' });
    this.end.hidden = true;
    this.eventsTitle.hidden = this.events.hidden = this.table.hidden = this.listTitle.hidden = true;
    if (this.missing(s, model, 'stream')) return;
    setBadge(this.state, s.priority || 'stream', '');
    const b = model.backends.get(String(s.backend));
    this.path.update([sidecar(t, s), ...between(t), replica(model, s),
      { icon: 'i-backend', kind: 'Backend', title: s.backend, state: b?.breaker, lines: [b?.address, s.target && `to ${name(s.target, 80)}`, `route ${name(s.route, 80)}`] }],
    [t ? tunnelLink(t, s) : { lines: ['plain WebSocket', flow(s)] }, ...peerLink(t), { lines: [s.mode, num(s.open_ms) !== undefined && `opened in ${ms(s.open_ms)}`] }]);
    this.showFacts([['Tenant', s.tenant], ['Subject', s.subject], ['App', s.app], ['Pod', s.pod], ['Client', s.client], ['Route', s.route], ['Backend', s.backend], ['Mode', s.mode], ['Priority', s.priority],
      ['Opened', s.since, `${span(Math.floor((model.now() - s.since) / 1000))} ago`], ['Open took', num(s.open_ms) === undefined ? '' : ms(s.open_ms)],
      ['Sent', amount(s.sent, s.sent_rate)], ['Received', amount(s.received, s.received_rate)]]);
  }

  tenant(model) {
    const { tenant } = this.place;
    const tunnels = model.byTenant?.get(tenant) || [];
    const streams = model.streams.filter((s) => s.tenant === tenant);
    setName(this.title, tenant);
    this.state.hidden = true;
    this.path.node.hidden = true;
    const limits = model.limits.get(tenant) || {};
    const detached = tunnels.filter((t) => t.state === 'detached').length;
    const of = (n, most) => count(n) + (most > 0 ? ` of ${count(most)}` : '');
    const { limits: may = {}, left = {} } = limits;
    this.showFacts([['Tier', limits.tier], ['Tunnels', of(tunnels.length, may.tunnels) + (detached ? `, ${count(detached)} detached` : '')],
      ['Streams', of(Math.max(streams.length, sum(tunnels, 'streams') ?? 0), may.streams)], ['Waiting opens', limits.waiting > 0 ? count(limits.waiting) : ''],
      ['To clients', amount(limits.bytes_sent, limits.sent_rate) || rate(sum(tunnels, 'sent_rate'))], ['From clients', amount(limits.bytes_received, limits.received_rate) || rate(sum(tunnels, 'received_rate'))],
      ['Opens', num(limits.opens) === undefined ? '' : `${count(limits.opens)} so far`], ['Refused', num(limits.refused) === undefined ? '' : `${count(limits.refused)} so far`],
      ['Open limit', may.opens > 0 ? `${count(may.opens)} /min${left.opens >= 0 ? `, ${count(left.opens)} left` : ''}` : ''], ['Bandwidth limit', may.bandwidth > 0 ? rate(may.bandwidth) : ''],
      ['Memory held', limits.retained > 0 ? bytes(limits.retained) : '']]);
    this.showUp(`Filter by ${name(tenant, 60)}`, { q: `tenant:${/\s/.test(tenant) ? `"${tenant}"` : tenant}`, tenant: '', tunnel: '', stream: '' });
    this.showStreams(model, streams);
    this.showEvents(model.events.filter((e) => e.tenant === tenant));
  }

  showUp(text, to) {
    this.up.hidden = !text;
    set(this.up, text ? `${this.place.tunnel ? '← ' : ''}${text}` : '');
    this.up.onclick = () => this.place.go(to);
  }

  showFacts(facts) {
    const known = facts.filter(([, v]) => v !== undefined && v !== '' && v !== null).sort(([a], [b]) => long.has(b) - long.has(a));
    reconcile(this.facts, known, ([key]) => key, ([key]) => {
      const dd = el('dd', { class: 'name' });
      const dt = el('dt', { text: name(key, 40) });
      return { node: el('div', { class: long.has(key) && 'long' }, dt, dd), update: ([, value, text]) => (text === undefined ? setName(dd, value) : setTime(dd, value, text)) };
    });
  }

  showStreams(model, streams) {
    this.table.hidden = streams.length === 0;
    this.table.classList.toggle('by-tunnel', !this.place.tunnel);
    set(this.listTitle, model.without.get('streams') || plural(streams.length, 'stream'));
    const sorted = [...streams].sort((a, b) => (b.sent_rate || 0) + (b.received_rate || 0) - (a.sent_rate || 0) - (a.received_rate || 0) || (a.since ?? 0) - (b.since ?? 0)).slice(0, cap);
    set(this.capped, streams.length > cap ? `Showing ${cap} of ${count(streams.length)} streams, the busiest first` : '');
    reconcile(this.list, sorted, (s) => s.key, (first) => {
      const open = el('button', { type: 'button', class: 'text mono', click: () => this.place.go({ tunnel: first.tunnel || '-', stream: first.id, tenant: '' }) });
      const way = el('span', { class: 'name' });
      const cells = [open, way, ...[0, 1, 2].map(() => el('span'))];
      return { node: el('tr', {}, ...cells.map((c, i) => el('td', { class: i > 1 && 'number' }, c))), update: (s) => {
        setName(open, this.place.tunnel ? s.id : `${s.tunnel || 'plain'}/${s.id}`);
        setName(way, `${name(s.route, 60)} → ${name(s.backend, 60)}`);
        set(cells[2], rate(s.sent_rate));
        set(cells[3], rate(s.received_rate));
        setTime(cells[4], s.since, s.since === undefined ? '–' : span(Math.floor((model.now() - s.since) / 1000)));
      } };
    });
  }

  showEvents(events) {
    this.eventsTitle.hidden = this.events.hidden = events.length === 0;
    reconcile(this.events, events.slice(-20).reverse(), (e) => `${e.id} ${e.t}`, (e) => eventRow(e, this.place, false));
  }

  askEnd() {
    const id = this.place.tunnel;
    this.act({ title: `End tunnel ${name(id, 60)}?`, text: 'All of its streams break at once, and it cannot be resumed. The sidecar may make a new tunnel right away: revoke its token to keep it out.',
      yes: 'End the tunnel', danger: true, method: 'DELETE', path: `api/tunnels/${encodeURIComponent(id)}`, done: `Tunnel ${name(id, 60)} was ended.` });
  }
}

function sidecar(t, s) {
  return { icon: 'i-sidecar', kind: s.app || t ? 'Sidecar' : 'Client', title: s.pod || t?.pod || t?.subject || s.subject, state: t?.state,
    lines: [s.app && `app ${name(s.app, 80)}`, s.client && `client ${name(s.client, 80)}`, t?.peer && `from ${name(t.peer, 80)}`] };
}

function replica(model, x) {
  const here = x.instance === undefined || x.instance === model.live?.instance;
  return { icon: 'i-replica', kind: 'Replica', title: x.instance ?? model.live?.instance ?? 'this gateway', lines: [here ? 'this one' : 'another one', `tenant ${name(x.tenant, 80)}`] };
}

// between is the replica that relays a tunnel's lane to its owner, if one does.
function between(t) { return t?.via ? [{ icon: 'i-replica', kind: 'Replica', title: t.via, lines: ['relays the lane'] }] : []; }

function peerLink(t) { return t?.via ? [{ lines: ['to the owner, as it comes'] }] : []; }

function tunnelLink(t, s) {
  return { broken: t.state === 'detached', lines: [`tunnel ${name(t.key, 60)}${num(t.rtt_ms) !== undefined ? `, round trip ${ms(t.rtt_ms)}` : ''}`, flow(s || t)] };
}

function flow(x) { return `${rate(x.received_rate)} in, ${rate(x.sent_rate)} out`; }

function amount(total, pace) { return num(total) === undefined ? '' : `${bytes(total)}${num(pace) === undefined ? '' : ` (${rate(pace)})`}`; }
