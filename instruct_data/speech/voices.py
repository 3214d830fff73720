"""TTS voices: text -> wav, by engines that run on this machine.

    voice = open_voice("flite:slt")
    wav = voice.speak("the small red dog jumps")

A voice is specified as `kind:name`:

| specification                             | engine                   | options                |
|-------------------------------------------|--------------------------|------------------------|
| `flite:NAME`                              | CMU Flite                | `stretch`, `warp`      |
| `espeak:LANGUAGE[+VARIANT]`               | espeak-ng                | `speed`, `pitch`, `warp` |
| `transformers:FOLDER_OR_HUB_ID[#SPEAKER]` | a TTS model, such as VITS | none                  |
| `piper:FOLDER[#SPEAKER]`                  | a voice of Piper         | `stretch`, `noise`, `noise_w` |

- Flite is the system library libflite1 (apt, dnf and brew have it). Its voices `slt`, `awb`, `rms` and `kal16` are
  recordings of one speaker each.
- espeak-ng is the pip package espeakng-loader (extra `data`): formant synthesis, about a hundred languages and dozens
  of variants, such as `en-us+f2`, a thousand times faster than real time.
- `transformers:facebook/mms-tts-eng` is a text-to-speech model of transformers. SPEAKER is a number, for models with
  several speakers.
- A voice of Piper (https://github.com/OHF-Voice/piper1-gpl) is a folder with NAME.onnx and NAME.onnx.json. It needs
  onnxruntime and espeakng-loader (extra `piper`).

`stretch` above 1 speaks slower. `speed` is in words per minute, `pitch` from 0 to 99. `warp` above 1 shortens the vocal
tract, which raises the voice: the engine speaks slower, and the wav is played faster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from instruct_data.speech.tts_voice import TTSVoice, VoiceError
from instruct_data.text.reasons import TextReason

KINDS = "flite:NAME, espeak:LANGUAGE[+VARIANT], transformers:FOLDER_OR_HUB_ID[#SPEAKER], piper:FOLDER[#SPEAKER]"


def open_voice(specification: str, **options: float) -> TTSVoice:
    """Open a TTS voice.

    Args:
        specification: `kind:name`; the table above lists the kinds.
        options: of the engine; the table above lists them.

    Raises:
        VoiceError: if the kind is unknown, or Flite has no such voice. Whether the engine is installed, and has the
            voice, shows when it speaks.
    """
    kind, _, name = specification.partition(":")
    if kind == "flite":
        from instruct_data.speech.flite import FliteVoice

        return FliteVoice(name, **options)
    if kind == "espeak":
        from instruct_data.speech.espeak import EspeakVoice

        return EspeakVoice(name, **options)
    if kind in ("transformers", "piper"):
        folder, _, digits = name.partition("#")
        if not re.fullmatch("[0-9]*", digits):
            message = f"the speaker of {specification!r} is {digits!r}; it is a number, 0 or more"
            raise VoiceError(TextReason.UNKNOWN_VOICE, message)
        speaker = int(digits) if digits else None
        if kind == "piper":
            from instruct_data.speech.piper import PiperVoice

            return PiperVoice(folder, speaker, **options)
        from instruct_data.speech.transformers_tts import TransformersVoice

        return TransformersVoice(folder, speaker)
    raise VoiceError(TextReason.UNKNOWN_VOICE, f"unknown kind of voice {specification!r}; the kinds are {KINDS}")


def processes(specifications: Iterable[str]) -> int:
    """The number of worker processes that speaks fastest: one for each core, or one if a model is on a GPU."""
    if any(specification.startswith("transformers:") for specification in specifications):
        import torch

        if torch.cuda.is_available():
            return 1
    return os.cpu_count() or 1
