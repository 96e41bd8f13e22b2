// The page: asks, remembers, filters, shows.
import { API, Refusal } from './api.js';
import { Backends } from './backends.js';
import { Banners } from './banners.js';
import { Charts } from './charts.js';
import { Confirm, SignIn, notify } from './dialogs.js';
import { $, attribute, set, setBadge, setName, setTime } from './dom.js';
import { Drawer } from './drawer.js';
import { Events } from './events.js';
import { matches, parse } from './filter.js';
import { count, name, span, when } from './format.js';
import { Model } from './model.js';
import { Place } from './place.js';
import { Poll } from './poll.js';
import { Replicas } from './replicas.js';
import { Tiles } from './tiles.js';
import { Tunnels } from './tunnels.js';

const fast = 2000, slow = 5000, seldom = 60000; // ms
const page = { limit: 5000 }; // as many as the API gives at once

class Page {
  constructor() {
    this.api = new API();
    this.model = new Model();
    this.place = new Place(() => {
      if ($('filter').value.trim() !== this.place.q) $('filter').value = this.place.q; // not while a space is being typed
      this.draw();
    });
    const act = (what) => this.confirm.ask(what);
    const may = () => this.role !== 'viewer';
    this.confirm = new Confirm({ perform: (what) => this.perform(what) });
    this.signin = new SignIn({ given: (token) => { this.api.signIn(token); this.start(); } });
    this.banners = new Banners();
    this.tiles = new Tiles($('tiles'));
    this.charts = new Charts($('charts'));
    this.backends = new Backends({ act, may, place: this.place });
    this.events = new Events({ place: this.place });
    this.replicas = new Replicas();
    this.tunnels = new Tunnels({ place: this.place, changed: () => this.draw() });
    this.drawer = new Drawer({ act, may, place: this.place });
    this.polls = {
      live: this.poll('live', fast, () => this.askLive()),
      events: this.poll('events', fast, () => this.askEvents()),
      tunnels: this.poll('tunnels', slow, async () => this.model.takeTunnels(await this.api.list('api/tunnels', page))),
      streams: this.poll('streams', slow, async () => this.model.takeStreams(await this.api.list('api/streams', page))),
      backends: this.poll('backends', slow, async () => this.model.takeBackends(await this.api.list('api/backends'))),
      replicas: this.poll('replicas', slow, async () => this.model.takeReplicas(await this.api.get('api/replicas'))),
      drain: this.poll('drain', fast, () => this.askDrain()),
      tenants: this.poll('tenants', 2 * slow, async () => this.model.takeTenants(await this.api.list('api/tenants', page))),
    };
    this.listen();
    $('filter').value = this.place.q;
    if (!document.hidden) this.start();
    setInterval(() => this.drawHead(), 1000);
  }

  poll(what, every, ask) {
    const done = async () => {
      await ask();
      this.model.without.delete(what);
      this.answered(what);
      this.draw();
    };
    return new Poll({ every, ask: done, failed: (error) => this.failed(what, error) });
  }

  listen() {
    let typing;
    $('filter').addEventListener('input', () => { clearTimeout(typing); typing = setTimeout(() => this.place.go({ q: $('filter').value.trim() }, false), 120); });
    $('filter-form').addEventListener('submit', (event) => { event.preventDefault(); this.place.go({ q: $('filter').value.trim() }, false); });
    $('sign').addEventListener('click', () => { this.api.signOut(); location.reload(); });
    $('skip').addEventListener('click', (event) => { event.preventDefault(); $('main').focus(); }); // the fragment is the filter's
    document.addEventListener('keydown', (event) => {
      if (event.key === '/' && !event.ctrlKey && !event.metaKey && !/INPUT|TEXTAREA/.test(document.activeElement?.tagName)) { event.preventDefault(); $('filter').focus(); }
    });
    document.addEventListener('visibilitychange', () => (document.hidden ? this.stop() : this.start()));
  }

  start() {
    if (this.signin.open) return;
    this.heard = Date.now(); // a pause is not a loss
    this.polls.live.start();
    if (this.admitted) this.startAll();
  }

  // startAll follows the first answer: a gateway that wants a token then refuses, and records, one question and not eight.
  startAll() {
    this.admitted = true;
    if (this.polls.live.on) for (const p of Object.values(this.polls)) p.start();
  }

  stop() {
    for (const p of Object.values(this.polls)) p.stop();
    this.api.abort();
  }

  async askLive() {
    const last = this.whole ? '' : this.model.last();
    const answer = await this.api.get(last ? `api/live?after=${encodeURIComponent(last)}` : 'api/live').catch((error) => this.older(error));
    this.role = answer.role ?? this.role;
    if (this.model.takeLive(answer)) {
      notify(`The gateway was started anew${answer.version ? `: ${name(answer.version, 40)}` : ''}.`, 'warn');
      for (const p of Object.values(this.polls)) p.now();
    }
  }

  // older makes do with what gateways tell that do not know api/live yet: no rates, no latency, no history.
  async older(error) {
    if (error.status === 400 && !this.whole) {
      this.whole = true; // it cannot be asked for a part
      return this.api.get('api/live');
    }
    if (error.status !== 404) throw error;
    const d = await this.api.get('api/tunnel/diagnostics');
    const now = new Date().toISOString();
    return { now, instance: d.instance, version: d.version, state: d.state, started: d.started, totals: { tunnels: d.tunnels, detached: d.tunnels_detached, streams: d.streams },
      history: [{ t: now, tunnels: d.tunnels, streams: d.streams, detached: d.tunnels_detached }] };
  }

  async askEvents() {
    if (this.model.takeEvents(await this.api.get(`api/events?after=${this.model.lastEvent}`))) await this.askEvents();
  }

  // askDrain asks only while there is something to ask about.
  async askDrain() {
    if (this.model.live?.state === 'draining') this.model.takeDrain(await this.api.get('api/drain'));
  }

  answered(what) {
    $('sign').hidden = !this.api.signedIn;
    if (what !== 'live') return;
    this.startAll();
    if (this.lost) notify(`The gateway is back after ${span((Date.now() - this.lost) / 1000)}.`);
    this.heard = Date.now();
    this.lost = 0;
  }

  // failed says what to do about a question without an answer: how long to wait until the next, in ms.
  failed(what, error) {
    if (error.name === 'AbortError') return 50;
    if (!(error instanceof Refusal)) return this.lose(what, error);
    if (error.status === 401) {
      if (error.token !== this.api.token) return fast; // an answer that is overtaken: somebody has signed in or out since
      for (const p of Object.values(this.polls)) p.stop();
      this.admitted = false;
      const tried = this.api.signedIn;
      this.api.signOut();
      this.link = 'out';
      this.signin.ask(tried ? `${error.code} ${error.message}` : '');
      this.drawHead();
      return seldom;
    }
    if (error.status === 404 || error.status === 403) {
      this.model.without.set(what, error.status === 404 ? `This gateway does not report ${what}.` : `Your role may not see ${what}.`);
      this.draw();
      if (what === 'live') this.startAll();
      return seldom;
    }
    if (error.status === 429) return Math.min(seldom, Math.max(fast, error.wait || 0));
    return this.lose(what, error);
  }

  lose(what, error) {
    if (what !== 'live') return slow;
    this.lost ||= Date.now();
    this.why = error instanceof Refusal ? `${error.code} ${error.message}`.trim() : '';
    this.drawHead();
    return Date.now() - this.lost > 30000 ? slow : fast;
  }

  async perform(what) {
    try {
      await this.api.ask(what.method, what.path, what.body);
      notify(what.done);
    } catch (error) {
      const said = error instanceof Refusal ? `${error.code} ${error.message}${error.advice ? ` ${error.advice}` : ''}` : 'The gateway did not answer.';
      notify(`Not done. ${name(said, 400)}`, 'bad');
    }
    for (const p of Object.values(this.polls)) p.now();
  }

  // find applies the filter to everything.
  find() {
    const { model } = this;
    const state = `${model.version} ${this.place.q}`;
    if (this.found?.state === state) return this.found;
    const terms = parse(this.place.q);
    const pick = (list) => (terms.length ? list.filter((x) => matches(terms, model.about(x))) : list);
    const plain = [];
    for (const list of model.plain?.values() || []) plain.push(...list);
    this.found = { state, filtered: terms.length > 0, tunnels: pick([...model.tunnels.values()]), plain: pick(plain), backends: pick([...model.backends.values()]), events: pick(model.events),
      streams: pick(model.streams) };
    return this.found;
  }

  // draw shows the present, once for whatever comes in before the next frame.
  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      const found = this.find();
      this.tiles.update(this.model);
      this.charts.update(this.model, found);
      this.backends.update(this.model, found);
      this.events.update(this.model, found);
      this.replicas.update(this.model);
      this.tunnels.update(this.model, found);
      this.drawer.update(this.model);
      this.drawHead();
      set($('filter-count'), found.filtered ? `${count(found.tunnels.length)} of ${count(this.model.tunnels.size)} tunnels, ${count(found.streams.length)} of ${count(this.model.streams.length)} streams` : '');
    });
  }

  drawHead() {
    const { live } = this.model;
    this.banners.update(this.model);
    if (live) {
      setName($('instance'), live.instance);
      setBadge($('state'), live.state || 'unknown', live.state === 'serving' ? 'good' : 'warn');
      setName($('version'), live.version);
      const started = when(live.started);
      setTime($('uptime'), started, started === undefined ? '' : `up ${span(Math.floor((this.model.now() - started) / 1000))}`);
    }
    const link = this.signin.open ? 'out' : this.lost ? 'lost' : live ? 'live' : 'wait';
    attribute($('link'), 'data-link', link);
    set($('link-text'), { out: 'signed out', live: 'live', wait: 'connecting', lost: `lost for ${span(Math.floor((Date.now() - (this.lost || 0)) / 1000))}, trying again` }[link], this.lost ? this.why : '');
    document.body.classList.toggle('stale', link === 'lost');
    const open = [...this.model.backends.values()].filter((b) => b.breaker === 'open').length;
    const title = `${link === 'lost' ? '✕ lost · ' : open ? `⚠ ${open} open · ` : ''}${live ? name(live.instance, 40) : 'fairlead'} · fairlead`;
    if (document.title !== title) document.title = title;
  }
}

new Page();
