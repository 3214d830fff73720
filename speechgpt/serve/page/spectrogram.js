// A picture of sound: time from left to right, 0 to 8 kHz from bottom to top, louder is brighter.

import { RATE, toFloats } from "./sound.js";

const SIZE = 512;  // samples of one column: 21 ms
const HOP = RATE / 100;  // samples from one column to the next: 10 ms
const ROWS = Math.round(8000 * SIZE / RATE);
const MOST_COLUMNS = 2400;  // then two become one
const LOUDEST = -20, RANGE = 60;  // decibels of full scale, and from white to black
const SECOND = 110;  // pixels of the page, where there is room
const WINDOW = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / SIZE));

/** Power of a frame of SIZE samples at each frequency from 0 to half the rate, by the fast Fourier transform. */
export function power(frame) {
  const real = new Float64Array(SIZE), imaginary = new Float64Array(SIZE), bits = Math.log2(SIZE);
  for (let i = 0; i < SIZE; i++) {
    let mirrored = 0;
    for (let bit = 0; bit < bits; bit++) mirrored |= ((i >> bit) & 1) << (bits - 1 - bit);
    real[mirrored] = frame[i];
  }
  for (let half = 1; half < SIZE; half *= 2) {
    for (let i = 0; i < SIZE; i++) {
      if (i & half) continue;
      const angle = -Math.PI * (i & (half - 1)) / half, c = Math.cos(angle), s = Math.sin(angle), j = i + half;
      const x = c * real[j] - s * imaginary[j], y = c * imaginary[j] + s * real[j];
      [real[i], real[j]] = [real[i] + x, real[i] - x];
      [imaginary[i], imaginary[j]] = [imaginary[i] + y, imaginary[i] - y];
    }
  }
  return Float64Array.from({ length: SIZE / 2 + 1 }, (_, i) => real[i] ** 2 + imaginary[i] ** 2);
}

/** What each of 256 levels looks like, from black by violet and orange to white: bytes in the order of ImageData. */
const COLOURS = new Uint32Array(Uint8ClampedArray.from({ length: 4 * 256 }, (_, i) => {
  const bright = (i >> 2) / 255;
  return [255 * bright ** 0.8, 255 * bright ** 2.5, 110 * Math.sin(Math.PI * bright) + 200 * bright ** 6, 255][i & 3];
}).buffer);

export class Spectrogram {
  /** what: what is shown, in words. */
  constructor(what) {
    this.what = what;
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.height = ROWS;
    this.canvas.hidden = true;
    this.rest = new Float32Array(0);  // samples that the next column needs
    this.ahead = 0;  // samples between these and the next column
    this.columns = [];  // of levels, from low to high frequencies
    this.merged = 1;  // columns of 10 ms in one
    this.count = 0;  // samples
    this.due = false;  // it will be drawn
  }

  push(samples) {
    this.count += samples.length;
    const wav = new Float32Array(this.rest.length + samples.length);
    wav.set(this.rest);
    wav.set(toFloats(samples), this.rest.length);
    let at = this.ahead;
    for (; at + SIZE <= wav.length; at += HOP * this.merged) {
      this.columns.push(levels(power(wav.subarray(at, at + SIZE).map((value, i) => value * WINDOW[i]))));
      if (this.columns.length > MOST_COLUMNS) this.merge();
    }
    this.rest = wav.slice(Math.min(at, wav.length));
    this.ahead = Math.max(0, at - wav.length);
    this.label();
    if (!this.due) requestAnimationFrame(() => this.draw());
    this.due = true;
  }

  merge() {
    const half = [];
    for (let i = 0; i < this.columns.length; i += 2) {
      half.push(this.columns[i].map((value, row) => Math.max(value, this.columns[i + 1]?.[row] ?? value)));
    }
    this.columns = half;
    this.merged *= 2;
  }

  label() {
    this.canvas.hidden = !this.columns.length;
    this.canvas.style.width = `${SECOND * this.count / RATE}px`;
    this.canvas.setAttribute("aria-label", `spectrogram of ${this.what}, ${(this.count / RATE).toFixed(1)} seconds`);
  }

  draw() {
    this.due = false;
    const width = this.columns.length;
    if (!width) return;
    this.canvas.width = width;
    const image = new ImageData(width, ROWS), pixels = new Uint32Array(image.data.buffer);
    this.columns.forEach((column, x) => {
      for (let row = 0; row < ROWS; row++) pixels[(ROWS - 1 - row) * width + x] = COLOURS[column[row]];
    });
    this.canvas.getContext("2d").putImageData(image, 0, 0);
  }
}

/** Powers as levels, 0 to 255. */
function levels(powers) {
  const loud = SIZE * SIZE / 16;  // power of a sine at full scale
  return Uint8ClampedArray.from(powers.subarray(0, ROWS), one => (
    255 * (1 + (10 * Math.log10(one / loud + 1e-12) - LOUDEST) / RANGE)
  ));
}
