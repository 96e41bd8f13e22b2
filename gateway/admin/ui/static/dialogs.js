// Asking a person: to confirm, and to sign in. And telling them what came of it.
import { $, attribute, el, set } from './dom.js';

const stay = 8000; // ms that a notice is shown

export class Confirm {
  constructor({ perform }) {
    this.dialog = $('confirm');
    $('confirm-no').addEventListener('click', () => this.dialog.close());
    $('confirm-yes').addEventListener('click', () => { this.dialog.close(); perform(this.what); });
  }

  // ask asks for an action: { title, text, yes, danger, … }. The safe answer has the focus.
  ask(what) {
    this.what = what;
    set($('confirm-title'), what.title);
    set($('confirm-text'), what.text);
    set($('confirm-yes'), what.yes);
    attribute($('confirm-yes'), 'class', what.danger ? 'danger' : 'main');
    this.dialog.showModal();
    $('confirm-no').focus();
  }
}

export class SignIn {
  constructor({ given }) {
    this.dialog = $('signin');
    $('signin-form').addEventListener('submit', (event) => {
      event.preventDefault(); // the policy of the page forbids sending forms anyway
      const token = $('token').value.trim();
      if (!token) return;
      $('token').value = '';
      this.dialog.close();
      given(token);
    });
    this.dialog.addEventListener('cancel', (event) => event.preventDefault()); // there is nothing behind it to see
  }

  get open() { return this.dialog.open; }

  // ask asks for the token; refused says what was wrong with the one before, if there was one.
  ask(refused) {
    if (refused || !this.dialog.open) set($('signin-error'), refused || '');
    if (this.dialog.open) return;
    this.dialog.showModal();
    $('token').focus();
  }
}

// notify tells something for a while, or until it is dismissed.
export function notify(text, tone = 'good') {
  const node = el('p', { class: 'notice', 'data-tone': tone }, el('span', { text }));
  const leave = () => node.remove();
  node.append(el('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss', text: '×', click: leave }));
  $('notices').append(node);
  while ($('notices').children.length > 4) $('notices').firstElementChild.remove();
  setTimeout(leave, tone === 'bad' ? 2 * stay : stay);
}
