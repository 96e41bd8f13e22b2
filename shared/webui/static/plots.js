// Charts of figures over time, drawn by uPlot, with one cursor for all of them and a legend that tells what is under it.
import { el, set } from './dom.js';
import { clock, num, tick } from './format.js';

const height = matchMedia('(max-width: 600px)').matches ? 116 : 148; // px
const dashes = { solid: [], dashed: [5, 3], dotted: [1.5, 2.5] };

let colours = new Map(); // of the present colour scheme, by custom property

function colour(property) {
  if (!colours.has(property)) colours.set(property, getComputedStyle(document.documentElement).getPropertyValue(property).trim() || '#888');
  return colours.get(property);
}

export class Plots {
  // Each chart is { id, title, unit, series: [{ label, of, colour, dash, fill }] }: unit writes a value, of takes it from a
  // point, which has its time as t in ms. span is what is shown, in seconds, and spoken the same in words.
  constructor(parent, charts, span, spoken) {
    Object.assign(this, { span, spoken });
    this.charts = charts.map((c) => chart(parent, c, span));
    const resized = new ResizeObserver((entries) => {
      for (const e of entries) {
        const c = this.charts.find((x) => x.area === e.target);
        const width = Math.floor(e.contentRect.width);
        if (c && width > 50 && width !== c.plot.width) c.plot.setSize({ width, height });
      }
    });
    for (const c of this.charts) resized.observe(c.area);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      colours = new Map();
      for (const c of this.charts) c.plot.redraw(false, true);
    });
  }

  // draw shows points up to now, in ms. about is what the legends are headed with.
  draw(points, now, about) {
    this.about = about;
    now /= 1000;
    const width = Math.max(120, ...this.charts.map((c) => c.plot.width - 64));
    const slots = thin(points, width / 2);
    for (const c of this.charts) {
      c.plot.batch(() => {
        c.plot.setData([slots.map((slot) => slot.at(-1).t / 1000), ...c.series.map((s) => slots.map((slot) => mean(slot, s.of)))], false);
        c.plot.setScale('x', { min: now - this.span, max: now });
      });
      c.legend(this.about);
      const said = c.series.map((s) => `${s.label} ${c.unit(num(s.of(points.at(-1) || {})))}`).join(', ');
      c.area.setAttribute('aria-label', `${c.title}, ${this.spoken}. Now: ${said}.`);
    }
  }
}

// thin puts points together so that at most so many slots remain. A slot has fixed borders in time: as the chart moves
// on, its line keeps its shape.
function thin(points, most) {
  if (points.length <= most) return points.map((p) => [p]);
  const each = Math.ceil((points.at(-1).t - points[0].t) / (most - 1));
  const slots = [];
  let border = -1;
  for (const p of points) {
    const at = Math.floor(p.t / each);
    if (at === border) slots.at(-1).push(p); else slots.push([p]);
    border = at;
  }
  return slots;
}

// mean of what the points of a slot have; null, which leaves a gap, when they have nothing.
function mean(slot, of) {
  const values = slot.map((p) => num(of(p))).filter((v) => v !== undefined);
  return values.length ? values.reduce((a, b) => a + b) / values.length : null;
}

function chart(parent, c, span) {
  const area = el('div', { class: 'plot', role: 'img', 'aria-label': c.title });
  const values = c.series.map(() => el('b', { text: '–' }));
  const moment = el('span', { class: 'moment muted' });
  const key = el('ul', { class: 'key' }, ...c.series.map((s, i) => el('li', {}, el('i', { class: `swatch ${s.dash || 'solid'}`, 'data-colour': s.colour }), el('span', { text: s.label }), values[i])));
  parent.append(el('figure', { class: 'panel chart', id: `chart-${c.id}` }, el('figcaption', {}, el('h2', { text: c.title }), moment), key, area));
  const made = { ...c, area };
  // legend tells what is under the cursor, or else the present.
  made.legend = (about = made.about) => {
    made.about = about;
    const { idx } = made.plot.cursor;
    const [times, ...rows] = made.plot.data;
    const at = idx ?? times.length - 1;
    values.forEach((v, i) => set(v, c.unit(num(rows[i][at] ?? undefined))));
    set(moment, idx === null || idx === undefined || !times[idx] ? about : clock(times[idx] * 1000));
  };
  made.plot = new window.uPlot(options(c, span, () => made.plot && made.legend()), [[], ...c.series.map(() => [])], area);
  return made;
}

// fits says whether the label of a moment has room before the right edge.
function fits(u, t, span) { return u.width === 0 || ((u.scales.x.max - t) / span) * (u.width - 64) > 12; }

function options(c, span, moved) {
  const axis = { stroke: () => colour('--muted'), font: '11px system-ui, sans-serif', ticks: { show: false }, grid: { stroke: () => colour('--grid'), width: 1 } };
  return {
    width: 320, height, legend: { show: false }, padding: [8, 8, 0, 0],
    cursor: { sync: { key: 'page' }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
    scales: { x: { time: true, auto: false }, y: { range: (u, min, max) => [0, max > 0 ? max * 1.1 : 1] } },
    axes: [
      { ...axis, size: 24, space: 64, values: (u, ticks) => ticks.map((t) => (fits(u, t, span) ? clock(t * 1000).slice(0, 5) : '')), incrs: [60, 180, 300, 600] },
      { ...axis, size: 56, space: 28, gap: 4, values: (u, ticks) => ticks.map((v) => (v === 0 ? '0' : tick(c.unit(v)))) },
    ],
    series: [{}, ...c.series.map((s) => ({
      stroke: () => colour(s.colour), width: 1.5, dash: dashes[s.dash], points: { show: false }, spanGaps: false,
      fill: s.fill && (() => colour(`${s.colour}-fill`)),
    }))],
    hooks: { setCursor: [moved] },
  };
}
