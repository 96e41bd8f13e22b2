// The row of totals.
import { bytes, count, ms, num, percent, perSecond, rate } from './format.js';
import { Row, mean } from './row.js';

// Each tile: its title, what it shows of (live, points), the detail below, the course, and how bad it is.
const tiles = [
  { id: 'tunnels', title: 'Tunnels', value: (l) => count(l.totals?.tunnels), of: (p) => p.tunnels,
    detail: (l) => `${count(l.totals?.detached)} detached`, tone: (l) => (l.totals?.detached > 0.2 * l.totals?.tunnels && l.totals?.detached > 2 ? 'warn' : '') },
  { id: 'streams', title: 'Streams', value: (l) => count(l.totals?.streams), of: (p) => p.streams,
    detail: (l) => (l.totals?.tunnels > 0 && num(l.totals?.streams) !== undefined ? `${(l.totals.streams / l.totals.tunnels).toFixed(1)} per tunnel` : '') },
  { id: 'opens', title: 'Opens', value: (l, p) => perSecond(mean(p, 'opens', 5)), of: (p) => p.opens, detail: (l) => `${count(l.totals?.opens_total)} since start` },
  { id: 'errors', title: 'Refused / failed', value: (l, p) => percent(errors(p)), of: (p) => (p.refused || 0) + (p.failed || 0), danger: true,
    detail: (l) => `${count(l.totals?.refused_total)} / ${count(l.totals?.failed_total)} in total`, tone: (l, p) => (errors(p) > 0.2 ? 'bad' : errors(p) > 0.05 ? 'warn' : '') },
  { id: 'throughput', title: 'Throughput', value: (l, p) => rate(add(mean(p, 'sent', 3), mean(p, 'received', 3))), of: (p) => add(p.sent, p.received),
    detail: (l) => `${bytes(l.totals?.bytes_sent)} out, ${bytes(l.totals?.bytes_received)} in` },
  { id: 'latency', title: 'Open latency p95', value: (l, p) => ms(mean(p, 'p95_ms', 15)), of: (p) => p.p95_ms,
    detail: (l, p) => `p50 ${ms(mean(p, 'p50_ms', 15))}, p99 ${ms(mean(p, 'p99_ms', 15))}` },
  { id: 'resumes', title: 'Resumes in 15 min', value: (l, p) => count(total(p, 'resumes')), of: (p) => p.resumes,
    detail: (l, p) => `${count(total(p, 'lost'))} lost for good`, tone: (l, p) => (total(p, 'lost') > 0 ? 'warn' : '') },
  { id: 'pressure', title: 'Pressure', value: (l) => percent(l.totals?.pressure), of: (p) => p.pressure, most: 1,
    detail: (l) => strain(l.totals?.pressure), tone: (l) => (l.totals?.pressure >= 0.6 ? 'bad' : l.totals?.pressure >= 0.3 ? 'warn' : '') },
];

// strain says which new streams the gateway refuses: its pressure goes from 0 to 1 in three steps.
function strain(x) { return num(x) === undefined ? '' : x >= 0.9 ? 'takes nothing new' : x >= 0.6 ? 'high priority only' : x >= 0.3 ? 'refuses low priority' : 'at ease'; }

function add(a, b) { return num(a) === undefined && num(b) === undefined ? undefined : (a || 0) + (b || 0); }

function total(points, field) { return points.length ? points.reduce((sum, p) => sum + (num(p[field]) || 0), 0) : undefined; }

// errors is the share of the last minute's opens that were refused or failed.
function errors(points) {
  const last = points.slice(-30);
  const opens = total(last, 'opens');
  return opens > 0 ? Math.min(1, (total(last, 'refused') + total(last, 'failed')) / opens) : opens === undefined ? undefined : 0;
}

export class Tiles extends Row {
  constructor(parent) { super(parent, tiles); }

  update(model) { if (model.live) this.draw(model.live, model.points); }
}
