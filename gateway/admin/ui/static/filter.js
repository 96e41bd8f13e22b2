// The filter: words that must all be found. "payments" looks everywhere, "route:git" in one field, "-pod:web" excludes,
// "subject:\"a b\"" holds a space.

export const fields = ['tenant', 'route', 'pod', 'id', 'state', 'backend', 'kind', 'mode', 'app', 'subject', 'peer', 'instance', 'replica', 'via', 'tier'];

// parse turns a query into terms: { not, field or "", text }.
export function parse(query) {
  const terms = [];
  for (const [, minus, field, quoted, bare] of query.matchAll(/(-?)(?:([a-z]+):)?(?:"([^"]*)"?|(\S+))/gi)) {
    let text = quoted ?? bare;
    let key = (field || '').toLowerCase();
    if (key && !fields.includes(key)) { text = `${field}:${text}`; key = ''; }
    if (text) terms.push({ not: minus === '-', field: key, text: text.toLowerCase() });
  }
  return terms;
}

// quote writes a field and its value so that parse reads the same back, as far as it can.
export function quote(field, value) {
  const text = String(value).replaceAll('"', ' ');
  return /[\s"]/.test(text) || text === '' ? `${field}:"${text}"` : `${field}:${text}`;
}

// matches says whether what is known of an item, an object of field → value or several values, has all terms.
export function matches(terms, known) {
  return terms.every((term) => found(term, known) !== term.not);
}

function found({ field, text }, known) {
  if (field) return has(known[field], text);
  known[whole] ??= Object.values(known).map(flat).join('\n').toLowerCase(); // there may be 20,000 items: once each
  return known[whole].includes(text);
}

const whole = Symbol('all that is known, in one text');

function has(value, text) {
  if (value === undefined || value === null) return false;
  if (typeof value === 'object') {
    for (const v of value) if (has(v, text)) return true;
    return false;
  }
  return String(value).toLowerCase().includes(text);
}

function flat(value) { return value && typeof value === 'object' ? [...value].join('\n') : value ?? ''; }
