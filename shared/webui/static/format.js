// Numbers, times and names as people read them. What is missing is shown as –, never as 0.

const none = '–';

// num is x when it is a number, else undefined.
export function num(x) { return typeof x === 'number' && Number.isFinite(x) ? x : undefined; }

// significant gives two or three digits: more of them would only flicker.
function significant(x) {
  const size = Math.abs(x);
  return x.toFixed(size === 0 || size >= 9.95 ? 0 : size >= 0.995 ? 1 : 2);
}

export function count(x) { return num(x) === undefined ? none : Math.round(x).toLocaleString('en'); }

export function bytes(x) {
  if (num(x) === undefined) return none;
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let unit = 0;
  for (; Math.abs(x) >= 999.5 && unit < units.length - 1; unit++) x /= 1000;
  return `${unit === 0 ? Math.round(x) : significant(x)} ${units[unit]}`;
}

export function rate(x) { return num(x) === undefined ? none : `${bytes(x)}/s`; }

export function perSecond(x) { return num(x) === undefined ? none : `${x > 999 ? count(x) : significant(x)} /s`; }

export function percent(x) {
  if (num(x) === undefined) return none;
  return `${x > 0 && x < 0.0995 ? (x * 100).toFixed(1) : Math.round(x * 100)} %`;
}

export function ms(x) {
  if (num(x) === undefined) return none;
  return Math.abs(x) < 999.5 ? `${significant(x)} ms` : span(x / 1000);
}

// span tells a duration in seconds with at most two units.
export function span(s) {
  if (num(s) === undefined) return none;
  s = Math.max(0, s);
  if (s < 9.95 && s % 1 !== 0) return `${significant(s)} s`;
  s = Math.round(s);
  if (s < 60) return `${s} s`;
  const parts = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
  const first = parts.findIndex(([, size]) => s >= size);
  const [unit, size] = parts[first];
  const rest = parts[first + 1] && Math.floor((s % size) / parts[first + 1][1]);
  return `${Math.floor(s / size)} ${unit}` + (rest && s < (unit === 'min' ? 10 : 100) * size ? ` ${rest} ${parts[first + 1][0]}` : '');
}

// tick is a figure without a needless .0, for an axis.
export function tick(text) { return text.replace(/\.0+(?= )/, ''); }

// when reads a time of the API; undefined when there is none (Go's zero time is none, too).
export function when(text) {
  const t = typeof text === 'string' ? Date.parse(text) : NaN;
  return Number.isNaN(t) || t < 0 ? undefined : t;
}

export function clock(t) {
  return t === undefined ? none : new Date(t).toLocaleTimeString('en-GB');
}

// both tells a moment in local time and in UTC, for a title.
export function both(t) {
  if (t === undefined) return '';
  const d = new Date(t);
  return `${d.toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'long' })} · ${d.toISOString().replace('T', ' ').replace(/\.\d+Z/, '')} UTC`;
}

// Characters that are not seen, or that turn the direction of what follows: by them one name could pass for another.
const unseen = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb]/g;

// name makes a stranger's text fit to be shown: bounded, and with nothing unseen in it.
export function name(x, most = 200) {
  if (x === undefined || x === null || x === '') return none;
  let s = String(x);
  if (s.length > most) s = `${s.slice(0, most)}…`;
  return s.replace(unseen, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

export function plural(n, one, many = `${one}s`) { return `${count(n)} ${n === 1 ? one : many}`; }
