// One question and its answer by a chat completion.

import * as server from "./server.js";
import { fromBase64, toBase64, wavFile } from "./sound.js";

const SENT_AS_THEY_ARE = { wav: "wav", flac: "flac", mp3: "mp3", opus: "opus", ogg: "opus" };  // by the file's suffix

/** The part of a message that holds a file. samples: what this browser read of it, or null. */
export async function filePart(file, samples) {
  const suffix = file.name.split(".").pop().toLowerCase();
  const known = suffix in SENT_AS_THEY_ARE || !samples;
  return soundPart(known ? file : wavFile(samples), known ? SENT_AS_THEY_ARE[suffix] ?? "wav" : "wav");
}

/** The part of a message that holds a sound (Blob). */
export async function soundPart(blob, format = "wav") {
  return { type: "input_audio", input_audio: { data: toBase64(await blob.arrayBuffer()), format } };
}

/**
 * Ask, and show and play the answer while it comes.
 * content: the question's text, or its sound as a part of a message. options: {aloud, remember, voice, candidates, conversation, player, signal}.
 */
export async function ask(content, answer, options) {
  const { conversation, player, signal } = options;
  const request = bySounds => ({
    messages: [...(options.remember ? conversation.messages(bySounds) : []), { role: "user", content: typeof content === "string" ? content : [content] }],
    ...(options.aloud ? { modalities: ["text", "audio"], audio: { voice: options.voice, format: "pcm16" } } : {}),
    ...(options.candidates ? { candidates: options.candidates } : {}),
  });
  try {
    await receive(server.answer(request(true), signal), answer, player);
  } catch (error) {
    if (error.code !== "audio_not_found") throw error;  // the server keeps spoken turns for an hour
    await receive(server.answer(request(false), signal), answer, player);
  }
}

async function receive(parts, answer, player) {
  for await (const { heard, said, sound, audioId, ended } of parts) {
    if (heard) answer.heard(heard);
    if (said) answer.said(said);
    if (audioId) answer.audioId = audioId;
    if (sound) {
      const samples = fromBase64(sound);
      answer.sound(samples);
      player.push(samples);
    }
    if (ended) {
      answer.finished = ended === "stop";
      answer.end(answer.finished ? "" : "cut off: the reply reached its greatest length");
    }
  }
  answer.end("the answer ended early");
}
