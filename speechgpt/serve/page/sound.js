// Samples of sound: 16-bit at 24 kHz, as OpenAI's API has them, in base64, as wav files, and at other rates.

export const RATE = 24000;  // Hz

/** The samples (Int16Array) of base64 text. An odd last byte is dropped. */
export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

/** Samples or bytes as base64 text. */
export function toBase64(data) {
  const bytes = new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength);
  const parts = [];
  for (let at = 0; at < bytes.length; at += 0x8000) {
    parts.push(String.fromCharCode(...bytes.subarray(at, at + 0x8000)));
  }
  return btoa(parts.join(""));
}

/** Several Int16Arrays as one. */
export function joined(pieces) {
  const whole = new Int16Array(pieces.reduce((count, piece) => count + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

export const toFloats = samples => Float32Array.from(samples, sample => sample / 32768);
export const toSamples = floats => Int16Array.from(floats, value => Math.max(-1, Math.min(1, value)) * 32767);

/** Samples as a wav file (Blob). */
export function wavFile(samples, rate = RATE) {
  const head = new DataView(new ArrayBuffer(44));
  const spell = (at, word) => [...word].forEach((letter, i) => head.setUint8(at + i, letter.charCodeAt(0)));
  spell(0, "RIFF");
  head.setUint32(4, 36 + samples.byteLength, true);
  spell(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);  // integers
  head.setUint16(22, 1, true);  // one channel
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  spell(36, "data");
  head.setUint32(40, samples.byteLength, true);
  return new Blob([head, samples], { type: "audio/wav" });
}

/** Level of some samples (Float32Array), from 0 at -60 dB to 1 at full scale. */
export function level(floats) {
  const power = floats.reduce((sum, value) => sum + value * value, 0) / Math.max(1, floats.length);
  return Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-12) / 6));
}

const ZEROS = 16;  // zero crossings of the low-pass filter on each side

/** Sound that comes in pieces, at another rate. The joined pieces equal those of the whole. */
export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.cut = Math.min(1, to / from) * 0.95;  // of the lower half rate
    this.reach = Math.ceil(ZEROS / this.cut);
    this.held = new Float32Array(this.reach);  // silence before the first sample
    this.at = this.reach;  // place of the next output, in `held`
  }

  /** The samples (Float32Array) that are complete after a further piece. */
  push(piece) {
    const held = new Float32Array(this.held.length + piece.length);
    held.set(this.held);
    held.set(piece, this.held.length);
    const out = [];
    for (; this.at + this.reach + 1 < held.length; this.at += this.step) out.push(this.value(held));
    const drop = Math.max(0, Math.floor(this.at) - this.reach);
    this.held = held.slice(drop);
    this.at -= drop;
    return Float32Array.from(out);
  }

  value(held) {
    const middle = Math.floor(this.at);
    let sum = 0;
    for (let i = middle - this.reach + 1; i <= middle + this.reach; i++) {
      const x = this.at - i, angle = Math.PI * x * this.cut;
      const sinc = angle === 0 ? 1 : Math.sin(angle) / angle;
      sum += held[i] * sinc * this.cut * (0.5 + 0.5 * Math.cos(Math.PI * x / (this.reach + 1)));
    }
    return sum;
  }
}
