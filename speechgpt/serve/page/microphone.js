// The microphone: samples at 24 kHz while it is open.

import { RATE, Resampler, level, toSamples } from "./sound.js";

const capture = new URL("./capture.js", import.meta.url);

export class Microphone {
  /**
   * Ask the browser for the microphone.
   * echo: take what the page plays out of what it hears. heard: called with samples (Int16Array) and their level.
   */
  static async open(echo, heard) {
    if (!navigator.mediaDevices) {
      throw new Error("a browser gives the microphone only to https pages and to pages of this machine (localhost)");
    }
    const wanted = { channelCount: 1, echoCancellation: echo, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    const context = new AudioContext();
    try {
      await context.audioWorklet.addModule(capture);
      const node = new AudioWorkletNode(context, "capture");
      const resampler = new Resampler(context.sampleRate, RATE);
      node.port.onmessage = ({ data }) => heard(toSamples(resampler.push(data)), level(data));
      context.createMediaStreamSource(stream).connect(node);
      await context.resume();
    } catch (error) {
      await new Microphone(stream, context).close();
      throw error;
    }
    return new Microphone(stream, context);
  }

  constructor(stream, context) {
    this.stream = stream;
    this.context = context;
  }

  async close() {
    this.stream.getTracks().forEach(track => track.stop());
    if (this.context.state !== "closed") await this.context.close();
  }
}
