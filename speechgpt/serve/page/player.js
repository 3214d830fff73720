// Plays sound that comes in pieces, each where the one before it ends.

import { RATE, toFloats } from "./sound.js";

const AHEAD = 0.05;  // seconds between the first piece and its sound

export class Player {
  constructor(changed) {
    this.changed = changed;  // called when playing begins or ends
    this.context = null;
    this.sources = new Set();
    this.until = 0;
  }

  /** Browsers let a page play only after a key or a click: to be called in its handler. */
  wake() {
    this.context ??= new AudioContext();
    this.context.resume();
  }

  get playing() {
    return this.sources.size > 0;
  }

  push(samples) {
    if (!samples.length) return;
    this.wake();
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    buffer.getChannelData(0).set(toFloats(samples));
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.onended = () => {
      this.sources.delete(source);
      this.changed();
    };
    this.until = Math.max(this.until, this.context.currentTime + AHEAD);
    source.start(this.until);
    this.until += buffer.duration;
    this.sources.add(source);
    this.changed();
  }

  stop() {
    for (const source of this.sources) source.stop();
    this.sources.clear();
    this.until = 0;
    this.changed();
  }
}
