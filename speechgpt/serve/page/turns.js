// The turns on the page, and those that a later question is asked with.

import { Spectrogram } from "./spectrogram.js";
import { joined, wavFile, RATE } from "./sound.js";

const SHOWN = 50;  // turns; older ones leave the page
const REMEMBERED = 20;  // of them are sent with a question; the server drops those for which the model has no room

function element(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Take a box from the page, and free its sound. */
function drop(box) {
  box.querySelectorAll("audio").forEach(audio => URL.revokeObjectURL(audio.src));
  box.remove();
}

/** A box of the conversation. who: human or model. */
class Turn {
  constructor(list, who) {
    this.list = list;
    this.who = who;
    this.box = element("article", `turn ${who}`);
    this.box.setAttribute("aria-label", who === "human" ? "question" : "answer");
    list.append(this.box);
    while (list.childElementCount > 2 * SHOWN) drop(list.firstElementChild);
    this.show();
  }

  show() {
    this.box.scrollIntoView({ block: "nearest" });
  }

  line(className, text) {
    const line = element("div", className, text);
    this.box.append(line);
    this.show();
    return line;
  }

  picture() {
    const spectrogram = new Spectrogram(this.who === "human" ? "the question" : "the answer");
    this.box.append(spectrogram.canvas);
    return spectrogram;
  }

  player(samples) {
    const audio = element("audio", "");
    audio.controls = true;
    audio.src = URL.createObjectURL(wavFile(samples));
    audio.setAttribute("aria-label", this.who === "human" ? "the question" : "the answer");
    this.box.append(audio);
    this.show();
  }
}

/** Something that was asked. text: null for sound. samples: null for text, or for sound that this browser cannot read. */
export class Question extends Turn {
  constructor(list, text, samples = null, name = "") {
    super(list, "human");
    this.text = text;
    if (text !== null || name) this.line("text", text ?? name);
    if (samples) this.sound(samples);
  }

  sound(samples) {
    this.picture().push(samples);
    this.player(samples);
  }
}

/** An answer while it comes, with how long its parts took. */
export class Answer extends Turn {
  constructor(list, question, begun = performance.now()) {
    super(list, "model");
    this.question = question;
    this.begun = begun;
    this.transcript = this.text = "";
    this.audioId = null;
    this.pieces = [];
    this.times = {};
    this.lines = {};
    this.ended = false;
    this.box.setAttribute("aria-busy", "true");
  }

  took(what) {
    this.times[what] ??= (performance.now() - this.begun) / 1000;
  }

  gain(kind, prefix, text) {
    this.lines[kind] ??= this.line(kind, prefix);
    this.lines[kind].textContent += text;
    this.took("text");
    this.show();
  }

  heard(text) {
    this.gain("heard", "heard: ", text);
    this.transcript += text;
  }

  said(text) {
    this.gain("text", "", text);
    this.text += text;
  }

  sound(samples) {
    if (!samples.length) return;
    this.took("sound");
    this.pieces.push(samples);
    this.spectrogram ??= this.picture();
    this.spectrogram.push(samples);
  }

  /** remark: what was not as it should be. */
  end(remark = "") {
    if (this.ended) return;
    this.ended = true;
    this.box.setAttribute("aria-busy", "false");
    const samples = joined(this.pieces);
    this.pieces = [];
    if (samples.length) this.player(samples);
    if (remark) this.line("wrong", remark);
    if (!Object.keys(this.times).length) return;
    this.took("whole");
    const times = Object.entries(this.times).map(([what, seconds]) => `${what} after ${seconds.toFixed(2)} s`);
    this.line("times", times.join(", ") + (samples.length ? `; ${(samples.length / RATE).toFixed(2)} s of sound` : ""));
  }

  /** Whether a later question can be asked with it. */
  get whole() {
    return this.ended && this.text !== "" && this.finished === true && (this.question.text ?? this.transcript) !== "";
  }
}

/** The turns so far. */
export class Conversation {
  constructor(list) {
    this.list = list;
    this.answers = [];
  }

  clear() {
    [...this.list.children].forEach(drop);
    this.answers = [];
  }

  answer(question, begun) {
    const answer = new Answer(this.list, question, begun);
    this.answers.push(answer);
    return answer;
  }

  /** Earlier turns, as [question, answer]. */
  texts() {
    const whole = this.answers.filter(answer => answer.whole);
    return whole.slice(-REMEMBERED).map(answer => [answer.question.text ?? answer.transcript, answer]);
  }

  /** Earlier turns as messages of a chat completion. aloud: spoken turns by their sounds, where the server has them. */
  messages(aloud) {
    return this.texts().flatMap(([asked, answer]) => [
      { role: "user", content: asked },
      aloud && answer.audioId
        ? { role: "assistant", audio: { id: answer.audioId } }
        : { role: "assistant", content: answer.text },
    ]);
  }
}
