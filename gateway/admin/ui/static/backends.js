// Backends with the state of their circuits, their SSH connections by tenant, and what an operator may do about them.
import { $, attribute, el, reconcile, set, setBadge, setName, setTime } from './dom.js';
import { count, name, num, plural, rate, span, when } from './format.js';
import { sum } from './model.js';

const tones = new Map([['closed', 'good'], ['open', 'bad'], ['half-open', 'warn']]);
const urgency = new Map([['open', 0], ['half-open', 1]]);

// What each mode means, for who is about to choose it.
const modes = [
  { mode: 'auto', label: 'Auto', text: 'Failures and probes decide again.' },
  { mode: 'open', label: 'Open', text: 'Every new connection to it is refused at once, until it is set back. Streams that exist go on.', danger: true },
  { mode: 'closed', label: 'Close', text: 'Every new connection is tried, however many fail, until it is set back.', danger: true },
];
const modeCap = 40; // pools shown for one backend
const remembered = 15 * 60 * 1000; // ms that a failure is shown after the backend works again

export class Backends {
  constructor({ act, place, may }) { Object.assign(this, { act, place, may, unfolded: new Set() }); }

  update(model, found) {
    this.model = model;
    const list = [...found.backends].sort((a, b) => (urgency.get(a.breaker) ?? 2) - (urgency.get(b.breaker) ?? 2) || (a.name < b.name ? -1 : 1));
    reconcile($('backends'), list, (b) => b.name, (b) => this.card(b));
    const open = [...model.backends.values()].filter((b) => b.breaker === 'open').length;
    set($('backends-sum'), !model.have.has('backends') ? model.without.get('backends') || 'Loading…'
      : list.length === 0 ? (found.filtered ? 'none matches the filter' : 'none configured') : `${plural(open, 'breaker')} open of ${count(model.backends.size)}`);
    attribute($('backends-sum'), 'data-tone', open > 0 && 'bad');
  }

  card(first) {
    const state = el('span', { class: 'badge' }), title = el('b', { class: 'name' });
    const facts = el('p', { class: 'facts' }), why = el('p', { class: 'why' });
    const pools = el('tbody'), cap = el('p', { class: 'muted small' });
    const table = el('div', { class: 'pools', hidden: true }, el('table', {}, el('thead', {}, el('tr', {}, el('th', { scope: 'col', text: 'Tenant' }),
      ...['SSH conns', 'Channels', 'Waiting', 'Reused'].map((text) => el('th', { scope: 'col', class: 'number', text })))), pools), cap);
    const fold = el('button', { type: 'button', class: 'fold', 'aria-label': `Pools of ${first.name}`, click: () => {
      if (!this.unfolded.delete(first.name)) this.unfolded.add(first.name);
      this.pools(first.name, fold, table, pools, cap);
    } }, el('i', { 'aria-hidden': 'true' }));
    const buttons = modes.map((m) => el('button', { type: 'button', text: m.label, title: m.text, click: () => this.choose(first.name, m) }));
    const group = el('div', { class: 'segments', role: 'group', 'aria-label': `Breaker of ${name(first.name)}` }, ...buttons);
    const node = el('article', { class: 'backend', 'data-name': name(first.name) }, el('div', { class: 'line' }, fold, title, state, group), facts, why, table);
    return { node, update: (b) => {
      setName(title, b.name);
      setBadge(state, b.breaker || 'unknown', tones.get(b.breaker));
      attribute(node, 'data-tone', tones.get(b.breaker));
      buttons.forEach((button, i) => attribute(button, 'aria-pressed', String(modes[i].mode === b.mode)));
      group.hidden = !this.may();
      this.facts(facts, why, b);
      this.pools(b.name, fold, table, pools, cap);
    } };
  }

  facts(node, why, b) {
    const now = this.model.now();
    const connections = b.pools.flatMap((p) => (Array.isArray(p.connections) ? p.connections : []));
    const dialing = (sum(b.pools, 'dialing') || 0) + (num(b.dialing) || 0), waiting = (sum(b.pools, 'waiting') || 0) + (num(b.waiting) || 0);
    const parts = [b.address && name(b.address, 80), this.model.have.has('streams') ? plural(b.flows.length, 'stream') : num(b.streams) !== undefined && plural(b.streams, 'stream'),
      b.flows.length && `${rate(sum(b.flows, 'sent_rate'))} out`, b.flows.length && `${rate(sum(b.flows, 'received_rate'))} in`,
      connections.length && `${plural(connections.length, 'SSH conn')}, ${plural(sum(b.pools, 'channels') ?? 0, 'channel')}`,
      dialing && `${count(dialing)} dialling`, waiting && `${count(waiting)} waiting`, b.up === false && b.breaker === 'closed' && `health check fails${b.health_error ? `: ${name(b.health_error)}` : ''}`];
    set(node, together(parts));
    const failing = num(b.failures) > 0, failed = when(b.last_failure_at), { retry } = b;
    const told = failing || now - failed < remembered; // one that is long over says nothing about now
    const said = [(b.mode === 'open' || b.mode === 'closed') && `forced ${b.mode} by ${b.changed_by ? name(b.changed_by, 60) : 'an operator'}`, failing && `${plural(b.failures, 'failure')} in a row`,
      told && failed !== undefined && `${failing ? 'last' : 'last failure'} ${span(Math.floor((now - failed) / 1000))} ago`, told && b.last_failure && name(b.last_failure),
      retry !== undefined && b.breaker === 'open' && b.mode !== 'open' && (retry > now ? `probes in ${span(Math.ceil((retry - now) / 1000))}` : 'probes with the next open')];
    setTime(why, failed, together(said));
  }

  pools(backend, fold, table, body, cap) {
    const b = this.model.backends.get(backend);
    const list = b?.pools || [];
    const open = this.unfolded.has(backend) && list.length > 0;
    fold.classList.toggle('none', list.length === 0);
    attribute(fold, 'aria-expanded', String(open));
    table.hidden = !open;
    if (!open) return;
    const sorted = [...list].sort((x, y) => (y.channels || 0) - (x.channels || 0) || (x.tenant < y.tenant ? -1 : 1)).slice(0, modeCap);
    reconcile(body, sorted, (p) => String(p.tenant), (first) => poolRow(first, this.place));
    set(cap, list.length > modeCap ? `Showing ${modeCap} of ${count(list.length)} tenants` : '');
  }

  choose(backend, m) {
    if (this.model.backends.get(backend)?.mode === m.mode) return;
    this.act({ title: `${m.label === 'Auto' ? 'Set' : m.label} the breaker of ${name(backend)}${m.label === 'Auto' ? ' to auto' : ''}?`, text: m.text, yes: m.label === 'Auto' ? 'Set to auto' : `${m.label} it`,
      danger: m.danger, method: 'PUT', path: `api/backends/${encodeURIComponent(backend)}/breaker`, body: { mode: m.mode }, done: `The breaker of ${name(backend)} is set to ${m.mode}.` });
  }
}

// together joins what is to be said; only between two parts may a line end, unless a part is a whole sentence.
function together(parts) { return parts.filter(Boolean).map((p) => (p.length < 40 ? p.replaceAll(' ', '\u00a0') : p)).join(' · '); }

function poolRow(first, place) {
  const tenant = el('button', { type: 'button', class: 'text name', click: () => place.go({ tenant: String(first.tenant), tunnel: '', stream: '' }) });
  const cells = [0, 1, 2, 3].map(() => el('td', { class: 'number' }));
  return { node: el('tr', {}, el('td', {}, tenant), ...cells), update: (p) => {
    setName(tenant, p.tenant);
    const connections = Array.isArray(p.connections) ? p.connections : [];
    set(cells[0], `${count(connections.length)}${p.dialing ? ` +${p.dialing}` : ''}`,
      connections.map((c) => `${name(c.id, 60)}: ${plural(c.channels ?? 0, 'channel')}, ${span((c.age_ms ?? 0) / 1000)} old, ${name(c.server, 60)}${c.retired ? ', retiring' : ''}`).slice(0, 20).join('\n'));
    set(cells[1], count(p.channels));
    set(cells[2], count(p.waiting));
    set(cells[3], count(p.reused));
  } };
}
