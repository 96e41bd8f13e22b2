// A row of tiles: each is a figure with its course.
import { attribute, el, set, svg } from './dom.js';
import { num } from './format.js';

const width = 100, height = 22;

// mean is over the last n points that have the figure: a single interval jumps too much to be read.
export function mean(points, field, n) {
  const values = points.slice(-n).map((p) => num(p[field])).filter((v) => v !== undefined);
  return values.length ? values.reduce((a, b) => a + b) / values.length : undefined;
}

export class Row {
  // Each tile: id, title, value(live, points), of(point) for the course, and if need be detail(live, points), tone(live,
  // points), most (top of the course) and danger.
  constructor(parent, tiles) {
    this.tiles = tiles.map((tile) => {
      const value = el('strong', { id: `tile-${tile.id}`, text: '–' });
      const detail = el('span', { class: 'muted' });
      const area = svg('path', { class: 'area' }), line = svg('path', { class: 'line' });
      const spark = svg('svg', { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true', class: tile.danger ? 'spark danger' : 'spark' }, area, line);
      const node = el('div', { class: 'tile', role: 'group', 'aria-label': tile.title }, el('h3', { text: tile.title }), value, detail, spark);
      parent.append(node);
      return { ...tile, node, value, detail, area, line, show: tile.value, below: tile.detail };
    });
  }

  draw(live, points) {
    for (const t of this.tiles) {
      set(t.value, t.show(live, points));
      const detail = t.below?.(live, points) ?? '';
      set(t.detail, detail, detail);
      attribute(t.node, 'data-tone', t.tone?.(live, points));
      const course = path(thin(points.map((p) => num(t.of(p))), 90), t.most);
      attribute(t.line, 'd', course.line);
      attribute(t.area, 'd', course.area);
    }
  }
}

// thin keeps the highest of each few values, so that a peak stays visible.
function thin(values, most) {
  const each = Math.ceil(values.length / most);
  if (each <= 1) return values;
  const out = [];
  for (let i = 0; i < values.length; i += each) {
    const some = values.slice(i, i + each).filter((v) => v !== undefined);
    out.push(some.length ? Math.max(...some) : undefined);
  }
  return out;
}

function path(values, most) {
  const top = most || Math.max(...values.filter((v) => v !== undefined), 0) || 1;
  const at = (v, i) => `${((i / Math.max(1, values.length - 1)) * width).toFixed(1)} ${(height - 1.5 - (v / top) * (height - 3)).toFixed(1)}`;
  let line = '', area = '', begin = -1;
  values.forEach((v, i) => {
    if (v === undefined) { begin = -1; return; }
    line += `${begin < 0 ? 'M' : 'L'}${at(v, i)}`;
    if (begin < 0) begin = i;
    if (i === values.length - 1 || values[i + 1] === undefined) {
      area += `M${at(0, begin)}${values.slice(begin, i + 1).map((x, j) => `L${at(x, begin + j)}`).join('')}L${at(0, i)}Z`;
    }
  });
  return { line, area };
}
