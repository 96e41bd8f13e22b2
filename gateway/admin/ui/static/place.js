// Where a person is: the filter, the sort order and what is drilled into, in the address's fragment, so that it can be
// bookmarked and sent. Secrets never come here.

const keys = ['q', 'sort', 'tenant', 'tunnel', 'stream'];

export class Place {
  constructor(changed) {
    this.changed = changed;
    this.read();
    window.addEventListener('hashchange', () => { this.read(); this.changed(); });
  }

  read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const key of keys) this[key] = (given.get(key) || '').slice(0, 400);
  }

  // go changes some keys. A step can be taken back with the browser's back button; typing is none.
  go(change, step = true) {
    Object.assign(this, change);
    const to = new URLSearchParams();
    for (const key of keys) if (this[key]) to.set(key, this[key]);
    const hash = `#${to}`;
    if (hash === (location.hash || '#')) return;
    const address = `${location.pathname}${location.search}${to.size ? hash : ''}`;
    if (step) window.history.pushState(null, '', address);
    else window.history.replaceState(null, '', address);
    this.changed();
  }
}
