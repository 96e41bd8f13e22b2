// The course of the state over the last ten minutes, as a strip and in words.
import { $, attribute, el, reconcile, set, svg } from './dom.js';
import { both, name, span } from './format.js';
import { phases } from './course.js';
import { tones } from './parts.js';

const shown = 600000; // ms

export function drawTimeline(samples, now) {
  const found = phases(samples.filter((s) => s.t > now - shown));
  const strip = $('timeline');
  if (!strip.firstElementChild) {
    strip.append(svg('svg', { viewBox: `0 0 ${shown} 1`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }));
    $('timeline-scale').append(...['10 min ago', '5', 'now'].map((text) => el('span', { text })));
  }
  reconcile(strip.firstElementChild, found, (p) => p.from, () => {
    const title = svg('title'), node = svg('rect', { height: 1 }, title);
    return { node, update(p) {
      const from = Math.max(p.from, now - shown);
      attribute(node, 'x', Math.round(from - (now - shown)));
      attribute(node, 'width', Math.max(1, Math.round(p.to - from)));
      attribute(node, 'data-tone', tones[p.state] || 'calm');
      set(title, `${name(p.state, 20)} for ${span(Math.round((p.to - p.from) / 1000))} until ${both(p.to)}`);
    } };
  });
  const sums = new Map();
  for (const p of found) sums.set(p.state, (sums.get(p.state) || 0) + p.to - p.from);
  const words = [...sums].sort((a, b) => b[1] - a[1]).map(([state, took]) => `${name(state, 20)} ${span(Math.round(took / 1000))}`).join(', ');
  set($('timeline-sum'), words);
  attribute(strip, 'aria-label', `State in the last 10 minutes: ${words}`);
}
