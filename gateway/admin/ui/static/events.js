// The reconnect timeline: what happened to whose tunnels in the last 15 minutes, as a strip per tenant and as a list.
import { $, attribute, el, icon, reconcile, set, setName, setTime } from './dom.js';
import { both, count, name } from './format.js';
import { group } from './model.js';
import { quote } from './filter.js';

const span = 15 * 60 * 1000; // ms
const stripCap = 8, listCap = 100;

// Each kind: its word, its tone, and how much it matters for which tenants are shown.
export const kinds = new Map([
  ['connect', ['connected', 'calm', 1]], ['resume', ['resumed', 'good', 3]], ['detach', ['detached', 'warn', 4]], ['lost', ['lost', 'bad', 20]],
  ['disconnect', ['ended', 'calm', 1]], ['refused', ['refused', 'warn', 5]], ['failed', ['failed', 'bad', 6]], ['breaker', ['breaker', 'bad', 9]], ['revoked', ['revoked', 'bad', 9]],
  ['reload', ['reload', 'calm', 1]], ['drain', ['drain', 'warn', 1]],
]);

function look(kind) {
  const [word, tone, weight] = kinds.get(kind) || [name(kind, 30), 'calm', 1];
  return { word, tone, weight, symbol: kinds.has(kind) ? `k-${kind}` : 'k-other' };
}

export class Events {
  constructor({ place }) {
    this.place = place;
    for (const kind of kinds.keys()) {
      const { word, tone, symbol } = look(kind);
      const n = el('span', { class: 'muted' });
      const button = el('button', { type: 'button', 'data-kind': kind, 'data-tone': tone, click: () => this.toggle(kind) }, icon(symbol), word, n);
      button.count = n;
      $('legend').append(el('li', {}, button));
    }
    $('strip').append(this.rows = el('div', { class: 'rows' }), el('div', { class: 'scale muted', 'aria-hidden': 'true' },
      ...['15 min ago', '10', '5', 'now'].map((text) => el('span', { text }))), this.more = el('p', { class: 'muted cap' }));
  }

  // toggle asks for one kind only, or again for all.
  toggle(kind) {
    const term = quote('kind', kind);
    const terms = this.place.q.split(/\s+/).filter(Boolean);
    const rest = terms.filter((t) => !t.startsWith('kind:'));
    this.place.go({ q: (terms.includes(term) ? rest : [...rest, term]).join(' ') });
  }

  update(model, found) {
    const now = model.now();
    const recent = found.events.filter((e) => e.t > now - span);
    this.now = now;
    this.strip(recent);
    const counts = group(model.events.filter((e) => e.t > now - span), (e) => e.kind);
    for (const button of $('legend').querySelectorAll('button')) {
      attribute(button, 'data-count', counts.get(button.dataset.kind)?.length ?? 0);
      set(button.count, ` ${count(counts.get(button.dataset.kind)?.length ?? 0)}`);
      attribute(button, 'aria-pressed', String(this.place.q.split(/\s+/).includes(`kind:${button.dataset.kind}`)));
    }
    const newest = found.events.slice(-listCap).reverse();
    reconcile($('events'), newest, (e) => `${e.id} ${e.t}`, (e) => eventRow(e, this.place));
    set($('events-sum'), model.without.get('events') || `last 15 min`);
    set($('events-cap'), found.events.length > listCap ? `Showing ${listCap} of ${count(found.events.length)} events` : found.events.length === 0 ? 'No events' + (found.filtered ? ' match the filter.' : ' yet.') : '');
  }

  strip(events) {
    const tenants = [...group(events, (e) => e.tenant || '')].map(([tenant, list]) => ({ tenant, list, weight: list.reduce((sum, e) => sum + look(e.kind).weight, tenant ? 0 : 1e6) }));
    const shown = tenants.sort((a, b) => b.weight - a.weight).slice(0, stripCap).sort((a, b) => (a.tenant < b.tenant ? -1 : 1));
    reconcile(this.rows, shown, (r) => r.tenant, (r) => this.row(r));
    for (const r of shown) this.marks(r);
    set(this.more, tenants.length > stripCap ? `and ${count(tenants.length - stripCap)} more tenants with fewer events` : '');
  }

  row(first) {
    const label = first.tenant ? el('button', { type: 'button', class: 'text name', click: () => this.place.go({ tenant: first.tenant, tunnel: '', stream: '' }) }) : el('span', { class: 'muted' });
    const lane = el('div', { class: 'lane', role: 'img' });
    const node = el('div', { class: 'row' }, label, lane);
    return { node, update: (r) => {
      if (first.tenant) setName(label, r.tenant); else set(label, 'gateway');
      r.lane = lane;
      const said = [...group(r.list, (e) => look(e.kind).word)].map(([word, list]) => `${list.length} ${word}`).join(', ');
      attribute(lane, 'aria-label', `${name(r.tenant || 'gateway')}: ${said}`);
    } };
  }

  // marks puts the marks of a row where their time is. Those of one kind within a few seconds are one mark.
  marks(row) {
    const slots = new Map();
    for (const e of row.list) {
      const key = `${e.kind} ${Math.floor(e.t / 6000)}`;
      const there = slots.get(key);
      if (there) there.n++; else slots.set(key, { key, n: 1, e });
    }
    reconcile(row.lane, [...slots.values()], (s) => s.key, ({ e }) => {
      const { word, tone, symbol } = look(e.kind);
      const node = el('span', { class: 'mark', 'data-tone': tone, click: () => e.tunnel && this.place.go({ tunnel: e.tunnel, stream: '', tenant: '' }) }, icon(symbol));
      return { node, update: (s) => {
        node.style.left = `${((100 * (s.e.t - (this.now - span))) / span).toFixed(2)}%`;
        attribute(node, 'title', `${s.n > 1 ? `${s.n} × ` : ''}${word}${s.n === 1 && s.e.text ? `: ${name(s.e.text)}` : ''}\n${both(s.e.t)}`);
      } };
    });
  }
}

export function eventRow(e, place, withTenant = true) {
  const { word, tone, symbol } = look(e.kind);
  const time = el('time', { datetime: new Date(e.t).toISOString() });
  setTime(time, e.t);
  const what = el('span', { class: 'kind', 'data-tone': tone }, icon(symbol), word);
  const who = el('span', { class: 'whose' });
  if (withTenant && e.tenant) who.append(link(e.tenant, () => place.go({ tenant: e.tenant, tunnel: '', stream: '' })), ' ');
  if (e.tunnel && withTenant) who.append(link(e.tunnel, () => place.go({ tunnel: e.tunnel, stream: '', tenant: '' }), 'mono'), ' ');
  for (const extra of new Set([withTenant && e.tunnel ? '' : e.pod, e.backend, e.route])) if (extra) who.append(el('span', { class: 'muted', text: `${name(extra)} ` }));
  const text = el('span', { class: 'said' }, e.code && el('code', { text: name(e.code, 20) }), e.code && ' ', e.text ? name(e.text, 300) : '');
  return { node: el('li', {}, time, what, el('div', { class: 'about' }, who, text)), update() {} };
}

function link(text, click, className = '') {
  const node = el('button', { type: 'button', class: `text name ${className}`, click });
  setName(node, text);
  return node;
}
