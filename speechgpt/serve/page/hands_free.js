// A conversation without a hand: the server finds where a question ends, answers, and stops when the person speaks again.

import { Microphone } from "./microphone.js";
import { Realtime } from "./server.js";
import { fromBase64, joined, RATE } from "./sound.js";
import { Question } from "./turns.js";

const KEPT = 150 * RATE;  // samples of the microphone; a question is one piece of these

export class HandsFree {
  /**
   * conversation, player: of the page. options: gives {remember, candidates}.
   * told: called with what is going on, in words. level: called with the microphone's. ended: called at the end.
   */
  constructor({ conversation, player, options, told, level, ended }) {
    Object.assign(this, { conversation, player, options, told, level, ended });
    this.pieces = [];
    this.first = this.count = 0;  // samples: where `pieces` begin, and how many came in all
    this.question = this.answer = this.session = this.microphone = null;
    this.silent = false;  // what still comes of an answer is not played
  }

  async begin() {
    try {
      this.session = await Realtime.open(event => this.handle(event), () => this.end("the connection was closed"));
      const { remember, voice } = this.options();
      const detection = { type: "server_vad", create_response: false, interrupt_response: true };
      const input = { turn_detection: detection, transcription: { model: "any" } };
      this.session.send("session.update", { session: { type: "realtime", audio: { input, output: { voice } } } });
      if (remember) this.recall();
      this.microphone = await Microphone.open(true, (samples, loudness) => this.hear(samples, loudness));
    } catch (error) {
      await this.end();
      throw error;
    }
    this.told("listening");
  }

  /** Tell a new session what was said before. */
  recall() {
    for (const [asked, { text }] of this.conversation.texts()) {
      for (const [role, part] of [["user", { type: "input_text", text: asked }], ["assistant", { type: "output_text", text }]]) {
        this.session.send("conversation.item.create", { item: { type: "message", role, content: [part] } });
      }
    }
  }

  hear(samples, loudness) {
    this.level(loudness);
    this.pieces.push(samples);
    this.count += samples.length;
    while (this.count - this.first - this.pieces[0].length > KEPT) this.first += this.pieces.shift().length;
    this.session.append(samples);
  }

  /** What the microphone heard between two places, in milliseconds since it was opened. */
  between(from, to) {
    const [start, end] = [from, to].map(ms => ms * RATE / 1000 - this.first);
    return joined(this.pieces).slice(Math.max(0, start), end);
  }

  handle(event) {
    const act = this[event.type.replaceAll(".", "_")];
    if (act) act.call(this, event);
  }

  input_audio_buffer_speech_started({ audio_start_ms: at }) {
    this.silent = true;
    this.player.stop();
    this.from = at;
    this.told("hearing you");
  }

  input_audio_buffer_speech_stopped({ audio_end_ms: at }) {
    this.question = new Question(this.conversation.list, null, this.between(this.from, at));
  }

  input_audio_buffer_committed() {
    const { remember, candidates } = this.options();
    const response = { conversation: remember ? "auto" : "none", ...(candidates ? { candidates } : {}) };
    this.session.send("response.create", { response });
    this.answer = this.conversation.answer(this.question);
    this.silent = false;
    this.told("answering");
  }

  conversation_item_input_audio_transcription_delta({ delta }) {
    this.answer?.heard(delta);
  }

  response_output_audio_transcript_delta({ delta }) {
    this.answer?.said(delta);
  }

  response_output_text_delta({ delta }) {
    this.answer?.said(delta);
  }

  response_output_audio_delta({ delta }) {
    const samples = fromBase64(delta);
    this.answer?.sound(samples);
    if (!this.silent) this.player.push(samples);
  }

  response_done({ response }) {
    const remarks = { cancelled: "stopped", incomplete: "cut off: the reply reached its greatest length", failed: "no answer" };
    if (this.answer) {
      this.answer.finished = response.status === "completed";
      this.answer.end(remarks[response.status]);
      this.answer = null;
    }
    this.told("listening");
  }

  error({ error }) {
    if (error.code === "response_cancel_not_active") return;  // the answer ended while the person pressed stop
    if (this.answer) this.answer.line("wrong", error.message);
    else this.told(error.message);
  }

  /** Stop the answer; go on listening. */
  interrupt() {
    this.silent = true;
    if (this.answer) this.session.send("response.cancel");
  }

  async end(reason = "") {
    if (this.over) return;
    this.over = true;
    this.answer?.end("stopped");
    this.session?.close();
    await this.microphone?.close();
    this.ended(reason);
  }
}
