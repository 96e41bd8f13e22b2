// Asking again and again: each question has its own pace, slower when its answers take long, and none is asked while
// nobody looks.

export class Poll {
  // ask() is awaited; failed(error) is told why one failed and answers how long to wait instead, in ms, or undefined.
  constructor({ every, ask, failed }) {
    Object.assign(this, { every, ask, failed, timer: 0, running: false, on: false });
  }

  start() { if (!this.on) { this.on = true; this.now(); } }

  stop() { this.on = false; clearTimeout(this.timer); }

  // now asks at once, unless it is being asked.
  now() {
    clearTimeout(this.timer);
    if (this.on && !this.running) this.once();
  }

  async once() {
    this.running = true;
    const begin = performance.now();
    let wait;
    try {
      await this.ask();
    } catch (error) {
      wait = this.failed(error);
    }
    this.running = false;
    const took = performance.now() - begin;
    if (this.on) this.timer = setTimeout(() => this.now(), wait ?? Math.max(this.every - took, 5 * Math.min(took, 3000), 200));
  }
}
