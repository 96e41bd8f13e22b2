// Tunnels by tenant: a table of tenants that unfold into their tunnels, sorted by any column, capped.
import { $, attribute, el, reconcile, set, setBadge, setName, setTime } from './dom.js';
import { count, ms, name, num, plural, rate, span } from './format.js';
import { sum } from './model.js';

const step = 200; // rows at a time
const unfoldAtMost = 40; // tunnels that a filter found are unfolded by themselves up to this many

// The columns: how a tunnel (t) and a tenant (g) are sorted by each.
const columns = [
  { id: 'name', title: 'Tenant / tunnel', t: (t) => t.key, g: (g) => g.tenant },
  { id: 'state', title: 'State', t: (t) => t.state, g: (g) => g.detached / Math.max(1, g.tunnels.length) },
  { id: 'streams', title: 'Streams', t: (t) => t.streams, g: (g) => g.streams, number: true },
  { id: 'sent', title: 'To client', t: (t) => t.sent_rate, g: (g) => g.sent, number: true },
  { id: 'received', title: 'From client', t: (t) => t.received_rate, g: (g) => g.received, number: true },
  { id: 'rtt', title: 'RTT', t: (t) => t.rtt_ms, g: (g) => g.rtt, number: true, wide: true },
  { id: 'resumes', title: 'Resumes', t: (t) => t.resumes, g: (g) => g.resumes, number: true, wide: true },
  { id: 'age', title: 'Age', t: (t) => -(t.since ?? NaN), g: (g) => -(g.since ?? NaN), number: true, wide: true },
  { id: 'token', title: 'Token ends', t: (t) => t.expires, g: (g) => g.expires, number: true, wide: true },
];

export class Tunnels {
  constructor({ place, changed }) {
    this.place = place;
    this.changed = changed;
    this.cap = step;
    this.unfolded = new Map(); // tenant → what a person chose
    this.build($('tunnels'));
    $('tunnels-more').addEventListener('click', () => { this.cap += step; changed(); });
    $('expand').addEventListener('click', () => {
      const open = $('expand').dataset.open !== 'true';
      this.unfolded.clear();
      this.all = open;
      changed();
    });
  }

  build(parent) {
    this.heads = columns.map((c) => {
      const button = el('button', { type: 'button', text: c.title, click: () => this.sort(c) });
      return el('th', { scope: 'col', class: cell(c) }, button);
    });
    this.body = el('tbody');
    this.empty = el('p', { class: 'empty muted', hidden: true });
    parent.append(el('table', { class: 'tree', 'aria-labelledby': 'tunnels-title' }, el('thead', {}, el('tr', {}, ...this.heads)), this.body), this.empty);
  }

  order() {
    const [, minus, id] = /^(-?)(\w*)$/.exec(this.place.sort) || [];
    return { column: columns.find((c) => c.id === id) || columns[0], down: minus === '-' };
  }

  // sort by a column: numbers from the largest first, and the other way around when it is chosen again.
  sort(c) {
    const now = this.order();
    const down = now.column === c ? !now.down : Boolean(c.number && c.id !== 'token');
    this.place.go({ sort: c === columns[0] && !down ? '' : `${down ? '-' : ''}${c.id}` }, false);
  }

  update(model, found) {
    const { column, down } = this.order();
    this.heads.forEach((th, i) => attribute(th, 'aria-sort', columns[i] === column && (down ? 'descending' : 'ascending')));
    const groups = summarise(found);
    groups.sort(by(column.g, down, (g) => g.tenant));
    const rows = [];
    let total = 0; // rows, if all were shown
    for (const g of groups) {
      g.open = this.unfolded.get(g.tenant) ?? this.all ?? ((found.filtered && found.tunnels.length <= unfoldAtMost) || groups.length === 1);
      total += 1 + (g.open ? g.tunnels.length : 0);
      if (rows.length < this.cap) rows.push(g);
      if (g.open && rows.length < this.cap) rows.push(...g.tunnels.sort(by(column.t, down, (t) => t.key)));
    }
    this.model = model;
    reconcile(this.body, rows.slice(0, this.cap), (r) => (r.tunnels ? `tenant ${r.tenant}` : `tunnel ${r.key}`), (r) => (r.tunnels ? this.tenantRow(r) : this.tunnelRow(r)));
    this.foot(model, found, groups, total);
  }

  foot(model, found, groups, rows) {
    set($('tunnels-sum'), model.have.has('tunnels') ? `${plural(found.tunnels.length, 'tunnel')}, ${plural(groups.length, 'tenant')}${found.filtered ? ` of ${count(model.byTenant.size)}` : ''}` : '');
    set($('tunnels-cap'), rows > this.cap ? `Showing ${count(this.cap)} of ${count(rows)} rows` : '');
    $('tunnels-more').hidden = rows <= this.cap;
    const open = groups.length > 0 && groups.every((g) => g.open);
    $('expand').dataset.open = open;
    set($('expand'), open ? 'Fold all' : 'Unfold all');
    $('expand').hidden = groups.length < 2;
    this.empty.hidden = groups.length > 0;
    set(this.empty, model.without.get('tunnels') || (!model.have.has('tunnels') ? 'Loading…' : found.filtered ? 'No tunnel matches the filter.' : 'No tunnels. Sidecars will show here when they connect.'));
  }

  tenantRow(first) {
    const fold = el('button', { type: 'button', class: 'fold' }, el('i', { 'aria-hidden': 'true' }));
    const title = el('button', { type: 'button', class: 'text name', click: () => this.place.go({ tenant: first.tenant, tunnel: '', stream: '' }) });
    const numbers = el('span', { class: 'muted' }), rest = el('span', { class: 'muted more' });
    const cells = columns.map((c) => el('td', { class: cell(c) }));
    cells[0].append(fold, title);
    cells[1].append(numbers, rest);
    const node = el('tr', { class: 'tenant' }, ...cells);
    let latest = first;
    fold.addEventListener('click', () => { this.unfolded.set(latest.tenant, !latest.open); this.changed(); });
    return { node, update: (g) => {
      latest = g;
      attribute(fold, 'aria-expanded', String(g.open));
      attribute(fold, 'aria-label', `${g.open ? 'Fold' : 'Unfold'} ${g.tenant}`);
      setName(title, g.tenant || '(no tenant)');
      const more = [g.detached && `${count(g.detached)} detached`, g.relayed && `${count(g.relayed)} relayed`, g.plain && `${count(g.plain)} plain`].filter(Boolean).join(', ');
      set(numbers, plural(g.tunnels.length, 'tunnel'));
      set(rest, more && `, ${more}`);
      set(cells[2], count(g.streams));
      set(cells[3], rate(g.sent));
      set(cells[4], rate(g.received));
      set(cells[5], num(g.rtt) === undefined ? '' : ms(g.rtt), 'mean of its tunnels');
      set(cells[6], count(g.resumes));
      this.times(cells, g);
    } };
  }

  tunnelRow(first) {
    const title = el('button', { type: 'button', class: 'text', click: () => this.place.go({ tunnel: first.key, stream: '', tenant: '' }) });
    const id = el('span', { class: 'mono name' }), pod = el('span', { class: 'name muted' });
    title.append(id, ' ', pod);
    const state = el('span', { class: 'badge' });
    const cells = columns.map((c) => el('td', { class: cell(c) }));
    const via = el('span', { class: 'muted name via' });
    cells[0].append(title);
    cells[1].append(state, ' ', via);
    const node = el('tr', { class: 'tunnel' }, ...cells);
    return { node, update: (t) => {
      setName(id, t.key);
      setName(pod, t.pod || t.peer || t.subject);
      setBadge(state, t.state, t.state === 'connected' ? 'good' : 'warn');
      via.hidden = !t.via;
      set(via, t.via ? `via ${name(t.via, 60)}` : '', t.via ? `its lane comes through ${name(t.via)}` : '');
      set(cells[2], count(t.streams));
      set(cells[3], rate(t.sent_rate));
      set(cells[4], rate(t.received_rate));
      set(cells[5], ms(t.rtt_ms));
      set(cells[6], count(t.resumes));
      this.times(cells, t);
      attribute(node, 'aria-selected', this.place.tunnel === t.key && 'true');
    } };
  }

  times(cells, x) {
    const now = this.model.now();
    setTime(cells[7], x.since, x.since === undefined ? '–' : span(Math.floor((now - x.since) / 1000)));
    const left = x.expires === undefined ? undefined : (x.expires - now) / 1000;
    setTime(cells[8], x.expires, left === undefined ? '–' : left < 0 ? 'over' : span(Math.floor(left)));
    attribute(cells[8], 'data-tone', left < 60 && 'warn');
  }
}

function cell(c) { return [c.number && 'number', c.wide && 'wide', `col-${c.id}`].filter(Boolean).join(' '); }

// summarise groups what was found by tenant.
function summarise(found) {
  const groups = new Map();
  const of = (tenant) => {
    let g = groups.get(tenant);
    if (!g) groups.set(tenant, g = { tenant, tunnels: [], loose: [] });
    return g;
  };
  for (const t of found.tunnels) of(t.tenant).tunnels.push(t);
  for (const s of found.plain) of(s.tenant).loose.push(s);
  for (const g of groups.values()) {
    const all = [...g.tunnels, ...g.loose];
    g.detached = g.tunnels.filter((t) => t.state === 'detached').length;
    g.relayed = g.tunnels.filter((t) => t.via).length;
    g.plain = g.loose.length;
    g.streams = (sum(g.tunnels, 'streams') ?? 0) + g.plain;
    g.sent = sum(all, 'sent_rate');
    g.received = sum(all, 'received_rate');
    g.resumes = sum(g.tunnels, 'resumes');
    const paths = g.tunnels.filter((t) => t.rtt_ms > 0);
    g.rtt = paths.length ? sum(paths, 'rtt_ms') / paths.length : undefined;
    g.since = least(g.tunnels, 'since');
    g.expires = least(g.tunnels, 'expires');
  }
  return [...groups.values()];
}

function least(list, field) {
  let low;
  for (const x of list) if (x[field] !== undefined && !(low <= x[field])) low = x[field];
  return low;
}

// by compares by a value, then by name; what has no value comes last in either direction.
function by(of, down, name) {
  return (a, b) => {
    const x = of(a), y = of(b);
    const noX = x === undefined || x === null || Number.isNaN(x), noY = y === undefined || y === null || Number.isNaN(y);
    let order = noX || noY ? noX - noY : typeof x === 'string' ? compare(x, y) * (down ? -1 : 1) : (x - y) * (down ? -1 : 1);
    if (order === 0) order = compare(name(a), name(b));
    return order;
  };
}

function compare(a, b) { return a < b ? -1 : a > b ? 1 : 0; }
