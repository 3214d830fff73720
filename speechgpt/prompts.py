"""Prompts of the two basic tasks: write down what was said, and read a text aloud."""

from __future__ import annotations

from speechgpt.dialogue import INPUT_FOLLOWS, Message

ASR_TASK = "Please transcribe this speech."
TTS_TASK = "Please read this text aloud."


def asr_prompt(units: tuple[int, ...]) -> Message:
    """Ask for the transcript of spoken units."""
    return Message("human", (f"{ASR_TASK} {INPUT_FOLLOWS}", units))


def tts_prompt(text: str) -> Message:
    """Ask for a text to be spoken."""
    return Message("human", (f"{TTS_TASK} {INPUT_FOLLOWS} {text}",))
