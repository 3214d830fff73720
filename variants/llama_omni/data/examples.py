"""Training examples: spoken or written questions, the answer as text, and, for the speech decoder, its units.

conversations     of instruct_data.build; a spoken question is a recording (--speech audio, or both)
published files   .json lists of the authors: {"conversation": [{"from": "human", "text": .., "speech": ..}, ..]}
text sets         of instruct-sources: {"question": .., "answer": ..}

What a conversation asks for is written in the config's words, so that training and use agree: those of the tasks asr
and tts, and the question of chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from instruct_data.build.records import read_conversations
from instruct_data.text.chats import read_chats
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message, Reply, Speech
from units.codebook import Codebook
from units.runtime.refusals import Refusals
from variants.llama_omni.data.published import published_conversations
from variants.speech_in.examples import Example, first_fields, of_chat, of_conversation

Form = Literal["conversations", "chats", "published"]


@dataclass(frozen=True)
class OmniExample(Example):
    """A conversation to learn; its last message is the answer's text.

    units: of the spoken answer; None where there are none.
    """

    units: tuple[int, ...] | None = None


def form_of(path: Path) -> Form:
    """What a source holds, by its name and first line.

    Raises: ValueError if it is none of the three forms.
    """
    if path.suffix == ".json":
        return "published"
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; a stage of LLaMA-Omni reads conversation sets (instruct-build --speech audio), text "
            "sets and published .json files"
        )
    fields = first_fields(path)
    if "format" in fields:
        return "conversations"
    if fields & {"question", "turns"}:
        return "chats"
    raise ValueError(
        f"{path}: its first line is neither the header of a conversation set nor a chat (question, answer)"
    )


def codebook_of(path: Path) -> Codebook | None:
    """The codebook that a source names, if it does."""
    return read_conversations(path).codebook if form_of(path) == "conversations" else None


@dataclass(frozen=True)
class Reading:
    """How examples are read.

    instructions: what stands beside speech or text, by what is asked for: answer, transcribe, say.
    transcripts: also give an example of the task asr for each conversation that begins with one recording whose
    transcript is known. written: replace recordings by their transcripts, where these are known.
    """

    instructions: Mapping[str, str]
    transcripts: bool = False
    written: bool = False


def read_examples(path: Path, how: Reading) -> Iterator[OmniExample]:
    """Stream the examples of a source.

    Raises: ValueError if the source, or a line of it, is of no form that is read.
    """
    form, instructions = form_of(path), how.instructions
    if form == "chats":
        refusals = Refusals()
        yield from (_example(of_chat(chat), None, instructions) for chat in read_chats(path, refusals))
        if refusals.counts:
            print(f"{path}: {refusals}", flush=True)
        return
    conversations = read_conversations(path) if form == "conversations" else published_conversations(path)
    for conversation in conversations:
        example = _example(of_conversation(conversation, path.parent), conversation, instructions)
        yield _written(example) if how.written else example
        if how.transcripts and example.task != "asr":
            yield from _transcription(example, instructions["transcribe"])


def _example(example: Example, conversation: Conversation | None, instructions: Mapping[str, str]) -> OmniExample:
    reply = Reply.from_parts(example.messages[-1].parts)
    units = reply.units if reply.speech is None else reply.speech.units
    *before, asked = example.messages[:-1]
    text = reply.text
    if conversation is not None and conversation.task == "tts":
        text = _read_aloud(asked)
        asked = Message("human", (f"{instructions['say']} {text}".strip(),))
    elif conversation is not None and conversation.task == "asr":
        asked = with_instruction(asked, instructions["transcribe"])
    elif conversation is not None:
        asked = with_instruction(asked, instructions["answer"])
        before = [one if one.role == "assistant" else with_instruction(one, instructions["answer"]) for one in before]
    answer = Message("assistant", (text,)) if text else example.messages[-1]
    return OmniExample(example.task, (*before, asked, answer), example.transcripts, units)


def _transcription(example: OmniExample, instruction: str) -> Iterator[OmniExample]:
    """The first recording of an example and its transcript, if it is known."""
    first = example.sounds[:1]
    text = example.transcripts.get(first[0]) if first else None
    if text:
        asked = with_instruction(Message("human", (first[0],)), instruction)
        yield OmniExample("asr", (asked, Message("assistant", (text,))), {first[0]: text})


def _written(example: OmniExample) -> OmniExample:
    """An example with the transcripts of its recordings in their place."""
    known = example.transcripts
    messages = []
    for message in example.messages:
        sounds = [part for part in message.parts if isinstance(part, Speech)] if message.role == "human" else []
        if sounds and all(known.get(sound) for sound in sounds):
            message = Message("human", (" ".join(known[sound] for sound in sounds),))
        messages.append(message)
    return replace(example, messages=tuple(messages))


def with_instruction(message: Message, instruction: str) -> Message:
    """What a human says, with the recordings first and an instruction after them; a written question as it is."""
    sounds = tuple(part for part in message.parts if isinstance(part, Speech))
    if not sounds:
        return message
    return Message("human", (*sounds, instruction) if instruction else sounds)


def _read_aloud(message: Message) -> str:
    """The text that a human asks to be read: what follows the task description, or the last text part."""
    texts = [part for part in message.parts if isinstance(part, str)]
    if not texts:
        raise ValueError("a conversation of the task tts has no text to read")
    return texts[-1].partition(INPUT_FOLLOWS)[2].strip() or texts[-1]
