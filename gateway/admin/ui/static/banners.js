// What an operator must see at once: that the gateway drains, and how far it is; that the store cannot be used, and what
// that means.
import { $, attribute, el, icon, set } from './dom.js';
import { clock, count, name, num, plural, span } from './format.js';

const phases = new Map([
  ['moving', 'Draining: sidecars move to other replicas'], ['finishing', 'Draining: open streams may finish'],
  ['ending', 'Draining: the deadline is over, what is left is cut'], ['stopping', 'Draining: stopping'],
]);

export class Banners {
  constructor() {
    this.drain = banner('drain', 'k-drain');
    this.bar = el('i');
    this.progress = el('div', { class: 'bar', role: 'progressbar', 'aria-label': 'Tunnels that have moved', 'aria-valuemin': '0' }, this.bar);
    this.drain.lines[0].after(this.progress);
    this.store = banner('store', 'k-failed');
    $('banners').append(this.drain.node, this.store.node);
  }

  // update is called each second: times run down.
  update(model) {
    this.showDrain(model);
    this.showStore(model);
  }

  showDrain(model) {
    const { live, drain } = model;
    const on = live?.state === 'draining';
    this.drain.node.hidden = !on;
    if (!on) return;
    const d = drain || {};
    const tunnels = num(d.tunnels) ?? num(live.totals?.tunnels), streams = num(d.streams) ?? num(live.totals?.streams);
    set(this.drain.title, phases.get(d.phase) || 'Draining: no new tunnels are taken');
    const left = d.deadline === undefined ? undefined : (d.deadline - model.now()) / 1000;
    say(this.drain.lines[0], [`${plural(tunnels, 'tunnel')} and ${plural(streams, 'stream')} left`, d.moved > 0 && `${plural(d.moved, 'tunnel')} moved`,
      d.ended > 0 && `${plural(d.ended, 'stream')} cut at the deadline`]);
    say(this.drain.lines[1], [left !== undefined && (left > 0 ? `what is left is cut in ${span(Math.ceil(left))}, at ${clock(d.deadline)}` : `the deadline was at ${clock(d.deadline)}`),
      d.since !== undefined && `began ${span(Math.floor((model.now() - d.since) / 1000))} ago`, d.reason && `because of ${name(d.reason, 80)}`]);
    const moved = num(d.moved), all = moved + tunnels;
    this.progress.hidden = !(all > 0);
    if (!(all > 0)) return;
    this.bar.style.width = `${((100 * moved) / all).toFixed(1)}%`;
    attribute(this.progress, 'aria-valuemax', all);
    attribute(this.progress, 'aria-valuenow', String(moved));
    attribute(this.progress, 'title', `${count(moved)} of ${plural(all, 'tunnel')} moved`);
  }

  showStore(model) {
    const store = model.cluster?.store;
    const down = store?.up === false;
    this.store.node.hidden = !down;
    if (!down) return;
    const since = store.since === undefined ? '' : ` for ${span(Math.floor((model.now() - store.since) / 1000))}`;
    set(this.store.title, `Degraded: the store that replicas share cannot be used${since}`);
    const [works, not, why] = this.store.lines;
    set(works, 'Works as before: open tunnels and streams, new ones, and resumes at the replica that has the tunnel.');
    set(not, 'Until it is back: each replica grants its own share of the limits. Circuits and revocations count only at the replica where they are made. '
      + 'A tunnel that comes to another replica is looked for at the replicas that were known last.');
    set(why, `FL-S431${store.error ? ` ${name(store.error, 300)}` : ''} · nothing has to be restarted`);
  }
}

// say joins what is to be said; only between two parts may a line end, unless a part is a whole sentence.
function say(node, parts) { set(node, parts.filter(Boolean).map((p) => (p.length < 45 ? p.replaceAll(' ', '\u00a0') : p)).join(' · ')); }

function banner(id, symbol) {
  const title = el('b', { role: 'status' });
  const lines = [0, 1, 2].map(() => el('p'));
  const node = el('section', { class: 'banner', id: `banner-${id}`, 'aria-label': id === 'drain' ? 'Drain' : 'Store', 'data-tone': 'warn', hidden: true }, icon(symbol), el('div', {}, title, ...lines));
  return { node, title, lines };
}
