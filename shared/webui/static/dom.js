// Building and updating elements. Values go in as text, never as markup: nothing here, or elsewhere, sets HTML.
import { both, clock, name } from './format.js';

const svgSpace = 'http://www.w3.org/2000/svg';

export const $ = (id) => document.getElementById(id);

// el makes an element. Functions among the attributes listen to the event of that name, `text` is its text, `title` its
// tooltip; undefined and false are left out.
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(svgSpace, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (typeof value === 'function') node.addEventListener(key, value);
    else if (key === 'text') node.textContent = value;
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((c) => c !== undefined && c !== null && c !== false));
  return node;
}

// icon shows one of the symbols that index.html defines.
export function icon(id, className = 'icon') {
  return svg('svg', { class: className, 'aria-hidden': 'true' }, svg('use', { href: `#${id}` }));
}

// set changes a text only where it differs, so that what a person has selected stays selected.
export function set(node, text, title) {
  if (node.textContent !== text) node.textContent = text;
  if (title !== undefined) attribute(node, 'title', title);
}

export function attribute(node, key, value) {
  if (value === undefined || value === false || value === '') {
    if (node.hasAttribute(key)) node.removeAttribute(key);
  } else if (node.getAttribute(key) !== String(value)) node.setAttribute(key, value);
}

// setName shows a stranger's text; the title has all of it, for where it is cut off.
export function setName(node, x) {
  const text = name(x);
  set(node, text, text);
}

// setTime shows a moment in local time, with UTC in the title.
export function setTime(node, t, text = clock(t)) { set(node, text, both(t)); }

// badge shows a state as a word with a colour.
export function setBadge(node, word, tone) {
  set(node, name(word, 40));
  attribute(node, 'data-tone', tone);
}

const kept = new WeakMap(); // parent → Map of key → { node, update }

// reconcile makes parent's children those of items: it keeps, updates and moves what is there. make(item) returns
// { node, update(item) }.
export function reconcile(parent, items, keyOf, make) {
  let have = kept.get(parent);
  if (!have) kept.set(parent, have = new Map());
  const wanted = new Map(items.map((item) => [keyOf(item), item]));
  for (const [key, row] of have) {
    if (!wanted.has(key)) { row.node.remove(); have.delete(key); }
  }
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let at = parent.firstElementChild;
  for (const [key, item] of wanted) {
    let row = have.get(key);
    if (!row) have.set(key, row = make(item));
    row.update(item);
    if (row.node === at) at = at.nextElementSibling;
    else parent.insertBefore(row.node, at);
  }
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}
