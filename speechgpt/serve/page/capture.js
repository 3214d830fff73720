// Runs beside the page, in the browser's audio thread: hands what the microphone gives to the page.

const AT_ONCE = 512;  // samples of one message

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = new Float32Array(AT_ONCE);
    this.count = 0;
  }

  process([[channel]]) {
    for (const value of channel ?? []) {
      this.held[this.count++] = value;
      if (this.count === AT_ONCE) {
        this.port.postMessage(this.held.slice());
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
