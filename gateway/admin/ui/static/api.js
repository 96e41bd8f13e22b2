// Asking the admin API. Addresses are relative to the page, so that a proxy may put a path in front of both.

const patience = 15000; // ms for one answer
const most = 40000; // items of one list
const store = 'fairlead-token';

// cursor reads where the next page begins from a header Link (RFC 8288). Of its address only that counts: a proxy may
// have put another path in front.
function cursor(link) {
  const [, address] = /<([^>]*)>\s*;[^,]*rel="?next"?/.exec(link || '') || [];
  return address === undefined ? '' : new URL(address, location.href).searchParams.get('after') || '';
}

// Refusal is an answer that says no.
export class Refusal extends Error {
  constructor(status, body, wait, token) {
    super(body.message || `the gateway answered ${status}`);
    this.status = status;
    this.code = body.code || '';
    this.advice = body.advice || '';
    this.wait = wait; // ms to wait before asking again, or undefined
    this.token = token; // that was refused, or null
  }
}

export class API {
  constructor() { this.leaving = new AbortController(); }

  get token() { return sessionStorage.getItem(store); }
  get signedIn() { return Boolean(this.token); }
  signIn(token) { sessionStorage.setItem(store, token); }
  signOut() { sessionStorage.removeItem(store); }

  // abort gives up what is under way.
  abort() { this.leaving.abort(); this.leaving = new AbortController(); }

  // get answers the JSON at an address.
  async get(path) { return (await this.ask('GET', path)).json(); }

  // list answers a list, whether it comes whole or in pages: the next one is told by the header Link, or by {items, next}.
  async list(path, query = {}) {
    const all = [];
    for (let after = ''; ;) {
      const given = new URLSearchParams({ ...query, ...(after && { after }) });
      const response = await this.ask('GET', given.size ? `${path}?${given}` : path);
      const answer = await response.json();
      const items = Array.isArray(answer) ? answer : answer?.items;
      if (!Array.isArray(items)) return all;
      for (const item of items) if (item && typeof item === 'object') all.push(item);
      const next = cursor(response.headers.get('Link')) || String(answer.next || '');
      if (!next || next === after || all.length >= most) return all;
      after = next;
    }
  }

  // ask sends a request and throws a Refusal unless it was granted.
  async ask(method, path, body) {
    const headers = { Accept: 'application/json' };
    const { token } = this;
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body !== undefined) headers['Content-Type'] = 'application/json';
    const response = await fetch(path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store', redirect: 'error', referrerPolicy: 'no-referrer',
      signal: AbortSignal.any([this.leaving.signal, AbortSignal.timeout(patience)]),
    });
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    const seconds = Number(response.headers.get('Retry-After'));
    throw new Refusal(response.status, said && typeof said === 'object' ? said : {}, said?.retry_after_ms || seconds * 1000 || undefined, token);
  }
}
