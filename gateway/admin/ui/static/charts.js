// The four charts of the last 15 minutes.
import { count, ms, perSecond, rate } from './format.js';
import { Plots } from './plots.js';

const charts = [
  { id: 'throughput', title: 'Throughput', unit: rate, series: [
    { label: 'to clients', of: (p) => p.sent, colour: '--c1', fill: true }, { label: 'from clients', of: (p) => p.received, colour: '--c2', dash: 'dashed' }] },
  { id: 'latency', title: 'Open latency', unit: ms, series: [
    { label: 'p50', of: (p) => p.p50_ms, colour: '--c1' }, { label: 'p95', of: (p) => p.p95_ms, colour: '--c2', dash: 'dashed' },
    { label: 'p99', of: (p) => p.p99_ms, colour: '--c3', dash: 'dotted' }] },
  { id: 'opens', title: 'Opens and errors', unit: perSecond, series: [
    { label: 'opens', of: (p) => p.opens, colour: '--c1', fill: true }, { label: 'refused', of: (p) => p.refused, colour: '--c2', dash: 'dashed' },
    { label: 'failed', of: (p) => p.failed, colour: '--bad', dash: 'dotted' }] },
  { id: 'tunnels', title: 'Tunnels and streams', unit: count, series: [
    { label: 'streams', of: (p) => p.streams, colour: '--c1', fill: true }, { label: 'tunnels', of: (p) => p.tunnels, colour: '--c2', dash: 'dashed' },
    { label: 'detached', of: (p) => p.detached, colour: '--c3', dash: 'dotted' }] },
];

export class Charts extends Plots {
  constructor(parent) { super(parent, charts, 15 * 60, 'last 15 minutes'); }

  update(model, found) { this.draw(model.points, model.now(), found.filtered ? 'all tenants' : 'last 15 min'); }
}
