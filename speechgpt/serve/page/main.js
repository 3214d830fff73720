// The page: what its buttons and keys do.

import { ask, filePart, soundPart } from "./asking.js";
import { HandsFree } from "./hands_free.js";
import { Microphone } from "./microphone.js";
import { Player } from "./player.js";
import * as server from "./server.js";
import { joined, RATE, toSamples, wavFile } from "./sound.js";
import { Conversation, Question } from "./turns.js";

const HELD = 350;  // milliseconds; a shorter press of the talk button starts a recording that a second press ends
const SHORTEST = 0.2;  // seconds of a recording

const at = id => document.getElementById(id);
const conversation = new Conversation(at("turns"));
const player = new Player(showBusy);
let able = new Set();  // what the model can do
let asking = null;  // AbortController of the question that is being answered
let recording = null;  // {opening, pieces, microphone, pressed}
let handsFree = null;

function tell(text) {
  at("status").textContent = text;
}

function showBusy() {
  at("stop").disabled = !(asking || recording || player.playing || handsFree?.answer);
}

function pressed(button, isPressed) {
  at(button).setAttribute("aria-pressed", isPressed);
}

// --- the model

function showModel(model) {
  at("model").textContent = model.id;
  able = new Set(model.capabilities);
  const spoken = able.has("answer") || able.has("stream");
  at("aloud").hidden = !spoken;
  at("text").hidden = at("ask").hidden = !able.has("chat");
  at("speak-line").hidden = !able.has("chat") || !able.has("say");
  at("verify-line").hidden = !able.has("say");
  const voices = model.voices ?? [];
  at("voice").replaceChildren(...voices.map(name => new Option(name)));
  at("voice").disabled = voices.length < 2;
  at("voice-line").hidden = !voices.length;
}

function options() {
  return { remember: at("remember").checked, candidates: at("verify").checked ? null : 1, voice: at("voice").value || "any" };
}

function typedKey() {
  const dialog = at("key-dialog");
  at("key").value = "";
  dialog.showModal();
  return new Promise(resolve => {
    dialog.onclose = () => resolve(dialog.returnValue === "given" ? at("key").value : null);
  });
}

// --- questions

/** Ask a question, which ends the answer before it. content: gives what the message holds. */
async function asked(question, content, aloud) {
  stop();
  await handsFree?.end();
  player.wake();
  const mine = asking = new AbortController();
  const answer = conversation.answer(question);
  tell("answering");
  showBusy();
  try {
    await ask(await content(), answer, { ...options(), aloud, conversation, player, signal: mine.signal });
  } catch (error) {
    answer.end(mine.signal.aborted ? "stopped" : error.message);
  }
  if (asking === mine) {
    asking = null;
    tell("");
  }
  showBusy();
}

const speaks = () => able.has("say") || able.has("stream");

function askTyped() {
  const text = at("text").value.trim();
  at("text").value = "";
  if (text) asked(new Question(conversation.list, text), async () => text, able.has("say") && at("speak").checked);
}

async function askFile(file) {
  const samples = await decoded(file);
  asked(new Question(conversation.list, null, samples, file.name), () => filePart(file, samples), speaks());
}

/** The samples of an audio file; null if this browser cannot read it. */
async function decoded(file) {
  try {
    const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
    return toSamples(sound.getChannelData(0));
  } catch {
    return null;
  }
}

function askRecorded(samples) {
  if (samples.length < SHORTEST * RATE) {
    tell("nothing was recorded: hold the button while you speak");
    return;
  }
  asked(new Question(conversation.list, null, samples), () => soundPart(wavFile(samples)), speaks());
}

// --- push to talk

async function record() {
  stop();
  player.wake();
  const mine = recording = { pieces: [], begun: performance.now() };
  pressed("talk", true);
  tell("opening the microphone");
  showBusy();
  try {
    mine.microphone = await Microphone.open(false, (samples, level) => {
      mine.pieces.push(samples);
      at("level").value = level;
    });
    if (recording === mine) tell("recording");
    else await mine.microphone.close();
  } catch (error) {
    if (recording === mine) recording = null;
    pressed("talk", false);
    tell(`no microphone: ${error.message}`);
    showBusy();
  }
}

async function endRecording(isAsked) {
  const { microphone, pieces } = recording;
  recording = null;
  pressed("talk", false);
  at("level").value = 0;
  tell("");
  await microphone?.close();
  showBusy();
  if (isAsked) askRecorded(joined(pieces));
}

/** A press of the talk button begins; what ends it is its release, or after a short press the next one. */
function talkDown() {
  if (recording) endRecording(true);
  else if (!handsFree) record();
}

function talkUp() {
  if (recording && performance.now() - recording.begun > HELD) endRecording(true);
}

// --- hands-free

async function toggleHandsFree() {
  if (handsFree) {
    await handsFree.end();
    return;
  }
  stop();
  player.wake();
  pressed("hands-free", true);
  tell("opening the microphone");
  handsFree = new HandsFree({
    conversation, player, options,
    told: text => { tell(text); showBusy(); },
    level: value => { at("level").value = value; },
    ended: reason => {
      handsFree = null;
      pressed("hands-free", false);
      at("level").value = 0;
      tell(reason);
      showBusy();
    },
  });
  try {
    await handsFree.begin();
  } catch (error) {
    tell(`no hands-free conversation: ${error.message}`);
  }
}

// --- stop

function stop() {
  asking?.abort();
  asking = null;
  handsFree?.interrupt();
  player.stop();
  if (recording) endRecording(false);
}

// --- buttons and keys

at("talk").addEventListener("pointerdown", event => {
  if (event.button === 0) talkDown();
});
addEventListener("pointerup", talkUp);
addEventListener("pointercancel", talkUp);
at("talk").addEventListener("contextmenu", event => event.preventDefault());  // of a long press on a phone
for (const [kind, act] of [["keydown", talkDown], ["keyup", talkUp]]) {
  at("talk").addEventListener(kind, event => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    if (!event.repeat) act();
  });
}
// a screen reader's own way to press a button sends a click alone
at("talk").addEventListener("click", event => {
  if (event.detail === 0) talkDown();
});
at("hands-free").onclick = toggleHandsFree;
at("stop").onclick = stop;
addEventListener("keydown", event => {
  if (event.key === "Escape" && !at("key-dialog").open) stop();
});
at("file").onchange = ({ target }) => {
  const [file] = target.files;
  if (file) askFile(file);
  target.value = "";
};
at("form").onsubmit = event => {
  event.preventDefault();
  askTyped();
};
at("clear").onclick = () => {
  stop();
  handsFree?.end();
  conversation.clear();
};
// a session is told of the earlier turns and of the voice when it begins, so another choice needs another session
at("remember").onchange = at("voice").onchange = () => handsFree?.end();

server.setKeyDialog(typedKey);
server.servedModel().then(showModel, error => { at("model").textContent = error.message; });
showBusy();
