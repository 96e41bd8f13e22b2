// The replicas that work as one gateway: how tunnels are spread over them, the store that they share, and what this one
// does for the others. A single gateway that shares nothing does not show it.
import { $, attribute, el, reconcile, set, setBadge, setName, setTime } from './dom.js';
import { bytes, count, name, num, plural, span } from './format.js';
import { sum } from './model.js';

const rowCap = 50, relayCap = 20; // shown at most
const old = 15000; // ms after which an answer is told to be old

// What came of resumes: the field, the word, the tone, and what it means.
const kinds = [
  ['same', 'here', 'good', 'this replica has the tunnel'],
  ['relayed', 'relayed', 'calm', 'another replica has it, and took the lane through this one'],
  ['refused', 'refused', 'warn', 'not now, or not by this client; the tunnel is not given up'],
  ['lost', 'lost', 'bad', 'the tunnel is gone, or was given up because its owner could not be reached'],
];

export class Replicas {
  constructor() {
    this.panel = $('replicas-panel');
    this.rows = el('tbody');
    this.cap = el('p', { class: 'muted cap' });
    const heads = ['Replica', 'Tunnels', 'Streams', 'Version', 'Up'];
    const table = el('table', { class: 'spread', 'aria-labelledby': 'replicas-title' },
      el('thead', {}, el('tr', {}, ...heads.map((text, i) => el('th', { scope: 'col', class: i > 2 && 'aside', text })))), this.rows);
    this.facts = el('dl', { class: 'facts-list shared' });
    this.relayRows = el('tbody');
    this.relayCap = el('p', { class: 'muted cap' });
    this.relays = el('div', { class: 'relays', hidden: true }, el('h3', { text: 'Relayed to their owners' }), el('table', {}, el('thead', {}, el('tr', {},
      ...['Tunnel', 'Owner', 'Client', 'To client', 'From client', 'Age'].map((text, i) => el('th', { scope: 'col', class: [i > 2 && 'number', i > 1 && i < 5 && 'aside'].filter(Boolean).join(' '), text })))),
    this.relayRows), this.relayCap);
    $('replicas').append(el('div', {}, table, this.cap), this.facts, this.relays);
    this.build();
  }

  build() {
    const row = (title, ...nodes) => this.facts.append(el('div', {}, el('dt', { text: title }), el('dd', {}, ...nodes)));
    this.store = el('span', { class: 'badge' });
    this.storeSaid = el('span', { class: 'name' });
    this.stack = el('span', { class: 'stack', 'aria-hidden': 'true' }, ...kinds.map(([, , tone]) => el('i', { 'data-tone': tone })));
    this.kinds = kinds.map(([, , tone, meaning]) => el('li', { 'data-tone': tone, title: meaning }));
    this.leases = el('span');
    this.lost = el('span', { class: 'badge', 'data-tone': 'bad', title: 'Other replicas gave these tunnels up, because they could not reach this one (FL-S435).' });
    this.relaying = el('span');
    row('Store', this.store, ' ', this.storeSaid);
    row('Resumes here', this.stack, el('ul', { class: 'kinds' }, ...this.kinds));
    row('Leases', this.leases, ' ', this.lost);
    row('Relayed here', this.relaying);
  }

  update(model) {
    const c = model.cluster;
    this.panel.hidden = !c || (c.replicas.length < 2 && c.relays.length === 0 && (c.store.kind === undefined || c.store.kind === 'memory'));
    if (this.panel.hidden) return;
    this.summary(c);
    const most = { tunnels: largest(c.replicas, 'tunnels'), streams: largest(c.replicas, 'streams') }, all = { tunnels: sum(c.replicas, 'tunnels'), streams: sum(c.replicas, 'streams') };
    reconcile(this.rows, c.replicas.slice(0, rowCap), (r) => r.key, () => replicaRow(model));
    for (const row of this.rows.children) row.spread(most, all);
    set(this.cap, c.replicas.length > rowCap ? `Showing ${rowCap} of ${count(c.replicas.length)} replicas` : '');
    this.shared(model, c);
    this.relayed(model, c);
  }

  summary(c) {
    const draining = c.replicas.filter((r) => r.draining === true).length;
    const age = Date.now() - c.at;
    set($('replicas-sum'), [plural(c.replicas.length, 'replica'), draining && `${count(draining)} draining`, c.store.up === false && 'as they were known last', age > old && `as of ${span(age / 1000)} ago`]
      .filter(Boolean).join(', '));
    attribute($('replicas-sum'), 'data-tone', (c.store.up === false || age > old) && 'warn');
  }

  // shared tells of the store, and of what this replica has done since it started.
  shared(model, c) {
    const { store, leases, resumes } = c;
    const since = store.since === undefined ? '' : ` for ${span(Math.floor((model.now() - store.since) / 1000))}`;
    setBadge(this.store, store.up === false ? 'degraded' : store.kind === 'memory' ? 'not shared' : 'up', store.up === false ? 'warn' : store.kind === 'memory' ? '' : 'good');
    setTime(this.storeSaid, store.since, `${name(store.kind, 20)}${since}`);
    kinds.forEach(([field, word], i) => {
      set(this.kinds[i], `${count(resumes[field])} ${word}`);
      attribute(this.kinds[i], 'data-none', !(resumes[field] > 0));
      this.stack.children[i].style.flexGrow = num(resumes[field]) || 0;
    });
    this.stack.hidden = !(kinds.some(([field]) => resumes[field] > 0));
    set(this.leases, `${count(leases.held)} held`);
    this.lost.hidden = !(leases.lost > 0);
    set(this.lost, `${count(leases.lost)} lost`);
    const carried = c.total > 0 && c.total <= c.relays.length && `${bytes(sum(c.relays, 'sent'))} out, ${bytes(sum(c.relays, 'received'))} in`;
    set(this.relaying, c.total > 0 ? [plural(c.total, 'lane'), carried].filter(Boolean).join(', ') : 'nothing now');
  }

  relayed(model, c) {
    this.relays.hidden = c.relays.length === 0;
    set(this.relayCap, c.total > relayCap ? `Showing the oldest ${Math.min(relayCap, c.relays.length)} of ${count(c.total)}` : '');
    reconcile(this.relayRows, c.relays.slice(0, relayCap), (r) => r.key, () => {
      const texts = ['mono', '', ''].map((more) => el('span', { class: `name ${more}` })), cells = [0, 1, 2].map(() => el('td', { class: 'number' }));
      cells[0].classList.add('aside');
      cells[1].classList.add('aside');
      return { node: el('tr', {}, ...texts.map((x, i) => el('td', { class: i > 1 && 'aside' }, x)), ...cells), update: (r) => {
        [r.tunnel, r.owner, r.client].forEach((x, i) => setName(texts[i], x));
        set(cells[0], bytes(r.sent));
        set(cells[1], bytes(r.received));
        setTime(cells[2], r.since, r.since === undefined ? '–' : span(Math.floor((model.now() - r.since) / 1000)));
      } };
    });
  }
}

function largest(list, field) { return list.reduce((most, x) => Math.max(most, num(x[field]) || 0), 0); }

// replicaRow is a line of the table; spread shows its share once the largest and the sum are known.
function replicaRow(model) {
  const title = el('b', { class: 'name' }), self = el('span', { class: 'badge own', text: 'this one' }), draining = el('span', { class: 'badge', 'data-tone': 'warn', text: 'draining' });
  const shares = ['tunnels', 'streams'].map((field) => ({ field, bar: el('i'), text: el('b'), cell: el('td', { class: 'share' }) }));
  for (const s of shares) s.cell.append(el('div', {}, s.text, el('span', { class: 'bar', 'aria-hidden': 'true' }, s.bar)));
  const version = el('td', { class: 'name aside' }), up = el('td', { class: 'aside' });
  const node = el('tr', {}, el('td', {}, el('div', { class: 'head' }, title, self, draining)), ...shares.map((s) => s.cell), version, up);
  let latest = {};
  node.spread = (most, all) => {
    for (const { field, bar, text, cell } of shares) {
      const n = num(latest[field]);
      bar.style.width = `${most[field] > 0 ? ((100 * (n || 0)) / most[field]).toFixed(1) : 0}%`;
      set(text, count(n));
      attribute(cell, 'title', n !== undefined && all[field] > 0 && `${Math.round((100 * n) / all[field])} % of ${count(all[field])} ${field}`);
    }
  };
  return { node, update: (r) => {
    latest = r;
    set(title, name(r.name));
    attribute(title, 'title', [name(r.key), r.address && `peer port ${name(r.address)}`].filter(Boolean).join('\n'));
    self.hidden = r.self !== true;
    draining.hidden = r.draining !== true;
    attribute(node, 'aria-current', r.self === true && 'true');
    attribute(node, 'data-tone', r.draining === true && 'warn');
    setName(version, r.version);
    setTime(up, r.started, r.started === undefined ? '–' : span(Math.floor((model.now() - r.started) / 1000)));
  } };
}
