// The server's API, which is OpenAI's: models, streamed chat completions, and realtime sessions.

import { toBase64 } from "./sound.js";

const KEPT_KEY = "key";  // in this tab's storage
let askForKey = async () => null;

/** ask: gives the key that a person types, or null. */
export function setKeyDialog(ask) {
  askForKey = ask;
}

const key = () => sessionStorage.getItem(KEPT_KEY);

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(key() ? { Authorization: `Bearer ${key()}` } : {}) };
  const reply = await fetch(path, { ...options, headers });
  if (reply.status === 401) {
    const given = await askForKey();
    if (given) {
      sessionStorage.setItem(KEPT_KEY, given);
      return send(path, options);
    }
  }
  if (!reply.ok) throw await failure(reply);
  return reply;
}

async function failure(reply) {
  const content = await reply.json().catch(() => null);
  const error = new Error(content?.error?.message ?? `the server answered with status ${reply.status}`);
  error.code = content?.error?.code;
  return error;
}

/** The model that is served: {id, capabilities, voices}. */
export async function servedModel() {
  return (await (await send("v1/models")).json()).data[0];
}

/** The data of server-sent events, as they come. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (event.startsWith("data: ") && event !== "data: [DONE]") yield JSON.parse(event.slice(6));
    }
  }
}

/** The parts of an answer, as they come: {heard}, {said}, {sound} in base64, {audioId}, {ended: a reason}. */
export async function* answer(request, signal) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ model: "any", stream: true, ...request });
  const reply = await send("v1/chat/completions", { method: "POST", headers, body, signal });
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    for (const { delta, finish_reason: ended } of event.choices) {
      const { data: sound, transcript, id: audioId } = delta.audio ?? {};
      yield { heard: delta.input_transcript, said: transcript ?? delta.content, sound, audioId, ended };
    }
  }
}

/** A realtime session: a conversation over one WebSocket. */
export class Realtime {
  /** handle: called with each event. ended: called when the connection is closed. */
  static open(handle, ended) {
    const address = new URL("v1/realtime?model=any", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const protocols = ["realtime", ...(key() ? [`openai-insecure-api-key.${key()}`] : [])];
    const socket = new WebSocket(address, protocols);
    return new Promise((resolve, reject) => {
      socket.onopen = () => resolve(new Realtime(socket));
      socket.onclose = () => {
        reject(new Error("the server does not open a realtime session"));
        ended();
      };
      socket.onmessage = ({ data }) => handle(JSON.parse(data));
    });
  }

  constructor(socket) {
    this.socket = socket;
  }

  send(type, content = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...content }));
  }

  append(samples) {
    this.send("input_audio_buffer.append", { audio: toBase64(samples) });
  }

  close() {
    this.socket.close();
  }
}
