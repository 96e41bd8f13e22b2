// The tiles and charts of the last ten minutes.
import { $ } from './dom.js';
import { bytes, count, ms, percent, rate } from './format.js';
import { Plots } from './plots.js';
import { Row, mean } from './row.js';

const minutes = 10;

const tiles = [
  { id: 'sent', title: 'Sent', value: (s) => rate(s.rates?.sent), of: (p) => p.sent },
  { id: 'received', title: 'Received', value: (s) => rate(s.rates?.received), of: (p) => p.received },
  { id: 'connections', title: 'Connections', value: (s) => count(sum(s.listeners, 'active')), of: (p) => p.connections,
    detail: (s) => `${count(sum(s.listeners, 'total'))} since start, ${count(sum(s.listeners, 'failed'))} failed` },
  { id: 'rtt', title: 'Round trip', value: (s) => ms(s.rtt_ms || undefined), of: (p) => p.rtt_ms || undefined, detail: (s, p) => `mean ${ms(mean(p.filter((x) => x.rtt_ms > 0), 'rtt_ms', 60))} in a minute`,
    tone: (s) => (s.quality === 'poor' ? 'bad' : s.quality === 'fair' ? 'warn' : '') },
  { id: 'loss', title: 'Heartbeats lost', value: (s) => percent(s.loss), of: (p) => p.loss, most: 1, danger: true, tone: (s) => (s.loss > 0.1 ? 'bad' : s.loss > 0.02 ? 'warn' : '') },
  { id: 'queue', title: 'Waiting', value: (s) => count(s.queue?.length), of: (p) => p.queue, danger: true, detail: (s) => `of ${count(s.queue?.size)}`, tone: (s) => (s.queue?.pressure ? 'warn' : '') },
];

const charts = [
  { id: 'throughput', title: 'Throughput', unit: rate, series: [
    { label: 'sent', of: (p) => p.sent, colour: '--c1', fill: true }, { label: 'received', of: (p) => p.received, colour: '--c2', dash: 'dashed' }] },
  { id: 'rtt', title: 'Round trip', unit: ms, series: [{ label: 'round trip', of: (p) => p.rtt_ms || undefined, colour: '--c1', fill: true }] },
  { id: 'connections', title: 'Connections', unit: count, series: [
    { label: 'open', of: (p) => p.connections, colour: '--c1', fill: true }, { label: 'waiting', of: (p) => p.queue, colour: '--bad', dash: 'dashed' }] },
  { id: 'spool', title: 'Spool', unit: bytes, series: [{ label: 'on disk', of: (p) => p.spool_bytes, colour: '--c1', fill: true }] },
];

function sum(list, field) { return (list || []).reduce((total, x) => total + (x[field] || 0), 0); }

export class Figures {
  constructor(tileParent, chartParent) {
    this.tiles = new Row(tileParent, tiles);
    this.plots = new Plots(chartParent, charts, minutes * 60, `last ${minutes} minutes`);
  }

  draw(status, points) {
    this.tiles.draw(status, points);
    $('chart-spool').hidden = !status.spool;
    this.plots.draw(points, Math.max(Date.now(), points.at(-1)?.t || 0), `last ${minutes} min`);
  }
}
