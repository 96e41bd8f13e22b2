// The way of a stream, or of a tunnel, as a small diagram: sidecar → replica → backend, perhaps through another replica.
import { attribute, el, icon, set, setBadge, setName } from './dom.js';
import { name } from './format.js';

const tones = new Map([['closed', 'good'], ['open', 'bad'], ['half-open', 'warn'], ['connected', 'good'], ['detached', 'warn']]);

// Path is a chain of stations and the links between them. Each update gives
// { stations: [{ icon, kind, title, lines, state, click }], links: [{ lines }] }.
export class Path {
  constructor() { this.node = el('ol', { class: 'path', 'aria-label': 'Path' }); this.parts = []; }

  update(stations, links) {
    if (this.parts.length !== stations.length) while (this.parts.length) this.parts.pop().node.remove(); // one between is of another kind
    stations.forEach((s, i) => {
      let part = this.parts[i];
      if (!part) {
        part = station(s);
        this.parts.push(part);
        this.node.append(part.node);
      }
      part.update(s, links[i]);
    });
  }
}

function station(first) {
  const kind = el('span', { class: 'muted small', text: first.kind }), title = el('b', { class: 'name' }), state = el('span', { class: 'badge' });
  const lines = el('span', { class: 'lines' });
  const arrow = el('span', { class: 'arrow', 'aria-hidden': 'true' }), said = el('span', { class: 'link-said' });
  const box = el('div', { class: 'station' }, icon(first.icon, 'big'), el('div', {}, el('span', { class: 'head' }, kind, state), title, lines));
  const hop = el('div', { class: 'hop' }, arrow, said);
  return { node: el('li', {}, box, hop), update: (s, link) => {
    set(kind, s.kind);
    setName(title, s.title);
    setBadge(state, s.state || '', tones.get(s.state));
    state.hidden = !s.state;
    attribute(box, 'data-tone', tones.get(s.state));
    list(lines, s.lines);
    hop.hidden = !link;
    attribute(hop, 'data-broken', link?.broken && 'true');
    if (link) list(said, link.lines);
  } };
}

function list(node, texts) {
  const said = texts.filter(Boolean).map((t) => name(t));
  while (node.children.length > said.length) node.lastElementChild.remove();
  said.forEach((text, i) => {
    const line = node.children[i] || node.appendChild(el('span', { class: 'name' }));
    set(line, text, text);
  });
}
