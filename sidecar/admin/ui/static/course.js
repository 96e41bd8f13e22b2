// What the page remembers between two answers: samples, so that only new ones are asked for, and the totals of listeners,
// so that rates can be told.
const keep = 600; // samples

export class Course {
  constructor() { this.samples = []; this.listeners = new Map(); }

  // path is where the samples that are missing are.
  path() {
    const last = this.samples.at(-1);
    return last ? `api/history?after=${encodeURIComponent(last.time)}` : 'api/history';
  }

  // take takes an answer. Those of a sidecar that was started anew begin a new course; false: it has to be asked again,
  // since what came is only a part of that.
  take(status, samples) {
    const anew = this.started !== undefined && this.started !== status.started;
    this.started = status.started;
    if (anew) { this.samples = []; this.listeners.clear(); return false; }
    const last = this.samples.at(-1)?.t ?? -Infinity;
    for (const s of samples) {
      const t = Date.parse(s.time);
      if (t > last) this.samples.push({ ...s, t });
    }
    this.samples.splice(0, this.samples.length - keep);
    this.measure(status.listeners || [], performance.now() / 1000);
    return true;
  }

  // measure tells what each listener carries, in bytes per second, of what its totals grew by over the last seconds.
  measure(listeners, now) {
    const seen = new Map();
    for (const l of listeners) {
      const marks = [...(this.listeners.get(l.name) || []), { at: now, sent: l.bytes_sent, received: l.bytes_received }].slice(-5);
      seen.set(l.name, marks);
      const [first, last] = [marks[0], marks.at(-1)];
      const rate = (of) => (last.at > first.at ? Math.max(0, last[of] - first[of]) / (last.at - first.at) : undefined);
      l.rates = { sent: rate('sent'), received: rate('received') };
    }
    this.listeners = seen;
  }
}

// phases are the stretches of time in which the state was the same, oldest first, as { state, from, to } in ms.
export function phases(samples) {
  const found = [];
  for (const { state, t } of samples) {
    const last = found.at(-1);
    if (last && last.state === state && t - last.to < 5000) last.to = t;
    else found.push({ state, from: last && t - last.to < 5000 ? last.to : t - 1000, to: t });
  }
  return found;
}
