// Endpoints, queue, spool, tunnels, listeners and events.
import { $, attribute, el, reconcile, set, setBadge, setName, setTime, svg } from './dom.js';
import { bytes, clock, count, ms, name, percent, plural, rate, span, when } from './format.js';

export const tones = {
  connected: 'good', resuming: 'warn', draining: 'warn', connecting: 'warn', disconnected: 'bad', failed: 'bad',
  excellent: 'good', good: 'good', fair: 'warn', poor: 'bad', healthy: 'good', failing: 'bad', unknown: 'calm',
};

function ago(text) {
  const t = when(text);
  return t === undefined ? '' : span(Math.max(0, Math.floor((Date.now() - t) / 1000)));
}

export function drawGateway(s) {
  const h = s.heartbeat || {};
  set($('heartbeat'), h.interval ? `heartbeat ${name(h.interval, 20)}${h.learned ? ', learned' : ''}` : '', name(h.reason || '', 300));
  reconcile($('endpoints'), s.endpoints || [], (e) => e.url, () => {
    const url = el('b', { class: 'name' }), state = el('span', { class: 'badge' }), more = el('span', { class: 'muted small' }), why = el('p', { class: 'why' });
    return { node: el('div', { class: 'endpoint' }, el('p', {}, state, url), el('p', {}, more), why), update(e) {
      setName(url, e.url);
      setBadge(state, e.active ? 'in use' : e.state, tones[e.state]);
      set(more, [e.active ? name(e.state, 20) : '', ago(e.since) && `for ${ago(e.since)}`, e.weight > 0 ? `weight ${e.weight}` : ''].filter(Boolean).join(', '));
      set(why, e.error ? name(e.error, 400) : '');
    } };
  });
}

// gauge fills parent with a bar and lines of text.
function gauge(parent, share, tone, lines) {
  if (!parent.firstElementChild) {
    const bar = svg('svg', { viewBox: '0 0 100 1', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, svg('rect', { height: 1 }));
    parent.append(el('div', { class: 'bar' }, bar), el('p'), el('p'), el('p', { class: 'bad' }));
  }
  attribute(parent.querySelector('rect'), 'width', (100 * Math.min(1, share || 0)).toFixed(2));
  attribute(parent, 'data-tone', tone);
  parent.querySelectorAll('p').forEach((p, i) => set(p, lines[i] || ''));
}

export function drawQueue(q) {
  const w = q.waiting || {};
  $('pressure').hidden = !q.pressure;
  gauge($('queue'), q.length / q.size, q.pressure ? 'warn' : '', [
    `${plural(q.length || 0, 'connection')} of ${count(q.size)} wait${q.length > 0 ? `: ${count(w.high)} high, ${count(w.normal)} normal, ${count(w.low)} low` : ''}`,
    `${count(q.refused)} refused, ${count(q.expired)} waited too long`]);
}

export function drawSpool(s) {
  $('spool-panel').hidden = !s;
  if (!s) return;
  set($('spool-sum'), `${bytes(s.bytes)} of ${bytes(s.size)}`);
  gauge($('spool'), s.bytes / s.size, s.error || s.bytes > 0.9 * s.size ? 'bad' : s.bytes > 0.5 * s.size ? 'warn' : '', [
    `${plural(s.connections, 'connection')} kept${s.oldest ? `, the oldest for ${ago(s.oldest)}` : ''}, ${count(s.delivering)} being delivered`,
    `${count(s.delivered)} delivered, ${count(s.dropped)} dropped, ${count(s.quarantined)} quarantined`,
    s.error ? name(s.error, 400) : '']);
}

// row makes a table row of cells, each of which is told how to show an item.
function row(cells) {
  const made = cells.map(([className]) => el('td', { class: className || undefined }));
  return { node: el('tr', {}, ...made), update(item) { cells.forEach(([, show], i) => show(made[i], item)); } };
}

const text = (of) => (node, x) => set(node, of(x));
const named = (of) => (node, x) => setName(node, of(x));
function badge(of) {
  return (node, x) => {
    if (!node.firstElementChild) node.append(el('span', { class: 'badge' }));
    setBadge(node.firstElementChild, of(x) || 'none', tones[of(x)] || 'calm');
  };
}

export function drawTunnels(tunnels) {
  const streams = tunnels.reduce((n, t) => n + t.streams, 0);
  set($('tunnels-sum'), `${plural(tunnels.length, 'tunnel')}, ${plural(streams, 'stream')}`);
  reconcile($('tunnels').tBodies[0], tunnels, (t) => t.slot, () => row([
    ['', (node, t) => set(node, String(t.slot), t.id)],
    ['', (node, t) => { badge((x) => x.state)(node, t); attribute(node, 'title', t.error && name(t.error, 400)); }],
    ['name', named((t) => (t.via ? `${t.replica} via ${t.via}` : t.replica))], ['number', text((t) => ms(t.rtt_ms || undefined))], ['number', text((t) => percent(t.loss))], ['', badge((t) => t.quality)],
    ['number', text((t) => count(t.streams))], ['number', text((t) => count(t.resumes))], ['number', text((t) => bytes(t.bytes_sent))], ['number', text((t) => bytes(t.bytes_received))],
    ['name', named((t) => t.endpoint)]]));
  reconcile($('tunnels-why'), tunnels.filter((t) => t.error), (t) => t.slot, () => {
    const node = el('li');
    return { node, update(t) { set(node, `tunnel ${t.slot}${ago(t.since) && `, for ${ago(t.since)}`}: ${name(t.error, 400)}`); } };
  });
}

export function drawListeners(listeners) {
  set($('listeners-sum'), plural(listeners.length, 'listener'));
  reconcile($('listeners').tBodies[0], listeners, (l) => l.name, () => row([
    ['name', named((l) => l.name)], ['name', named((l) => l.listen)], ['name', named((l) => (l.delivery === 'spool' ? `${l.route}, spooled` : l.route))], ['', text((l) => name(l.priority, 20))],
    ['number', text((l) => count(l.active))], ['number', text((l) => count(l.waiting))], ['number', text((l) => count(l.total))], ['number', text((l) => count(l.failed))],
    ['number', text((l) => rate(l.rates?.sent))], ['number', text((l) => rate(l.rates?.received))],
    ['number', text((l) => bytes(l.bytes_sent))], ['number', text((l) => bytes(l.bytes_received))]]));
}

export function drawEvents(events) {
  set($('events-sum'), events.length ? `the last ${count(events.length)}` : 'none yet');
  const seen = new Map(); // events have no id: what is the same in everything is told apart by its number
  const keyed = events.map((e) => {
    const same = JSON.stringify(e);
    seen.set(same, (seen.get(same) || 0) + 1);
    return { ...e, key: `${same} ${seen.get(same)}` };
  });
  reconcile($('events'), keyed.reverse(), (e) => e.key, () => {
    const time = el('time'), state = el('span', { class: 'badge' }), about = el('span', { class: 'about' });
    return { node: el('li', {}, time, el('span', {}, state), about), update(e) {
      setTime(time, when(e.time), clock(when(e.time)));
      setBadge(state, e.state, tones[e.state]);
      set(about, [`tunnel ${e.tunnel}`, e.attempt > 0 && `attempt ${e.attempt}`, e.delay_ms > 0 && `${e.state === 'connecting' ? 'after' : 'next in'} ${ms(e.delay_ms)}`, e.endpoint && name(e.endpoint, 120), e.code && name(e.code, 20), name(e.reason, 400)].filter(Boolean).join(' · '));
    } };
  });
}
