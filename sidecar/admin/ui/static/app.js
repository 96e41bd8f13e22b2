// The page: it asks the sidecar every second how it fares, and shows what it says.
import { $, attribute, set, setBadge, setName, setTime } from './dom.js';
import { Course } from './course.js';
import { bytes, ms, name, percent, plural, span, when } from './format.js';
import { Figures } from './figures.js';
import { Poll } from './poll.js';
import { drawEvents, drawGateway, drawListeners, drawQueue, drawSpool, drawTunnels, tones } from './parts.js';
import { drawTimeline } from './timeline.js';

const fast = 1000, patience = 10000; // ms

class Page {
  constructor() {
    this.figures = new Figures($('tiles'), $('charts'));
    this.course = new Course();
    this.lost = 0;
    this.poll = new Poll({ every: fast, ask: () => this.ask(), failed: (error) => this.failed(error) });
    document.addEventListener('visibilitychange', () => (document.hidden ? this.poll.stop() : this.poll.start()));
    setInterval(() => this.drawLink(), 1000);
    this.poll.start();
  }

  async ask() {
    const [status, samples] = await Promise.all(['api/status', this.course.path()].map(get));
    if (!this.course.take(status, samples)) this.course.take(status, await get(this.course.path()));
    this.lost = 0;
    this.status = status;
    this.draw(status);
    this.drawLink();
  }

  failed() {
    this.lost ||= Date.now();
    this.drawLink();
    return fast;
  }

  draw(s) {
    setName($('instance'), s.instance);
    setBadge($('state'), s.shutdown ? s.shutdown.phase : s.state, s.shutdown ? 'warn' : tones[s.state] || 'calm');
    setName($('version'), s.version);
    const graded = s.quality && s.quality !== 'none';
    $('quality').hidden = !graded;
    if (graded) {
      setBadge($('quality'), s.quality, tones[s.quality] || 'calm');
      attribute($('quality'), 'title', `round trip ${ms(s.rtt_ms)}, ${percent(s.loss)} of heartbeats unanswered`);
    }
    const started = when(s.started);
    setTime($('uptime'), started, started === undefined ? '' : `up ${span(Math.floor((Date.now() - started) / 1000))}${s.profile ? `, profile ${name(s.profile, 40)}` : ''}`);
    this.drawTrouble(s);
    this.figures.draw(s, this.course.samples);
    drawGateway(s);
    drawQueue(s.queue || {});
    drawSpool(s.spool);
    drawTunnels(s.tunnels || []);
    drawListeners(s.listeners || []);
    drawTimeline(this.course.samples, Math.max(Date.now(), this.course.samples.at(-1)?.t || 0));
    drawEvents(s.events || []);
  }

  // drawTrouble says in a sentence what is wrong, if something is.
  drawTrouble(s) {
    const [text, tone] = trouble(s);
    $('trouble').hidden = !text;
    attribute($('trouble'), 'data-tone', tone);
    set($('trouble'), text || '');
  }

  drawLink() {
    const link = this.lost ? 'lost' : this.status ? 'live' : 'wait';
    attribute($('link'), 'data-link', link);
    set($('link-text'), { live: 'live', wait: 'connecting', lost: `no answer for ${span(Math.floor((Date.now() - (this.lost || 0)) / 1000))}, trying again` }[link]);
    document.body.classList.toggle('stale', link === 'lost');
    const state = this.status?.shutdown ? 'stopping' : this.status?.state;
    const title = `${link === 'lost' ? '✕ no answer · ' : state && state !== 'connected' ? `⚠ ${name(state, 20)} · ` : ''}${this.status ? name(this.status.instance, 40) : 'sidecar'} · fairlead`;
    if (document.title !== title) document.title = title;
  }
}

function trouble(s) {
  if (s.shutdown) {
    const left = when(s.shutdown.deadline);
    const rest = left === undefined ? '' : `, ${span(Math.ceil(Math.max(0, left - Date.now()) / 1000))} left`;
    return [`Stopping (${name(s.shutdown.reason, 80)}): ${name(s.shutdown.phase, 20)}, ${plural(s.shutdown.connections, 'connection')} open, ${bytes(s.shutdown.spool_bytes)} in the spool${rest}.`, 'warn'];
  }
  if (s.ready) return [];
  return [`Connections are not carried now: ${name(s.not_ready || 'there is no tunnel', 400)}.`, s.state === 'failed' ? 'bad' : 'warn'];
}

async function get(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(patience) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

new Page();
