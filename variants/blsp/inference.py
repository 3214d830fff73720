"""BLSP: speech or text in, text out.

blsp = BLSP.from_pretrained("runs/toy/blsp")
print(blsp.answer("question.wav").text)
print(blsp.respond([Request("question.wav", "Please translate the following audio into German text.")]))

for piece in blsp.stream("question.wav"):  # the same, piece by piece
    print(piece.text, end="")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.answers import Answer, Capability, NotSupported, Piece, Sound
from speechgpt.dialogue import Message, Speech
from speechgpt.generation.generate import context_length
from speechgpt.sampling import Sampling
from units.runtime.hub import local_folder
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.records import BlspFacts, read_adapter
from variants.blsp.template import Template, open_template
from variants.listening import Sounds, SpeechLLM, draws, padded
from variants.speech_in.listener import Listener, Prompt, open_llm, text_message


@dataclass(frozen=True)
class Request:
    """What to respond to: a recording, an instruction, or both."""

    sound: Sound | Speech | None = None
    instruction: str = ""


class BLSP(Listener):
    """An encoder, an adapter and an LLM that answers in text: a speechgpt.answers.SpeechModel."""

    capabilities: frozenset[Capability] = frozenset({"answer", "stream", "transcribe", "chat"})

    def __init__(self, model: SpeechLLM, tokenizer: Any, facts: BlspFacts, folder: Path, device: str = "cpu") -> None:
        super().__init__(model, tokenizer, facts, open_template(facts.template, tokenizer), folder, device)
        self.facts: BlspFacts = facts
        self.template: Template = open_template(facts.template, tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str | None = None) -> BLSP:
        """Open a model folder: an adapter, and references to its LLM and its encoder.

        The encoder is opened when it is first needed; text chat does not need it.

        Args:
            folder: a model folder, or the id of a model on the hub.
            dtype: of the LLM's weights: float32, bfloat16 or float16. None takes the one that they are stored in, but
                float32 for bfloat16 weights on a device that would only emulate it.

        Raises:
            FileNotFoundError: the folder, or a file in it, is missing.
            ValueError: weights are damaged or not those that the adapter was trained with, or device or dtype do not
                exist.
        """
        folder = local_folder(folder)
        facts = BlspFacts.load(folder)
        llm, tokenizer = open_llm(facts.llm.find(folder), device, dtype)
        adapter = SpeechAdapter(facts.width, llm.config.get_text_config().hidden_size, facts.shape)
        try:
            adapter.load_state_dict(read_adapter(folder))
        except RuntimeError as error:
            raise ValueError(f"the adapter in {folder} is not of the shape in its speechgpt.json: {error}") from error
        return cls(SpeechLLM(llm, adapter.float()).to(device).eval(), tokenizer, facts, folder, device)

    # --- SpeechModel

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        """Answer a spoken question in text.

        Args:
            question: an audio file, or a wav (T,) at 16 kHz.
            history: earlier turns, spoken or written: `answer.turn` of each. The oldest are dropped where they would
                take more than half of the context.

        Raises:
            AudioError: the question is missing, not audio, silent or too short.
            ValueError: the question is longer than the context.
        """
        asked = self._asked(question, "answer")
        (reply,) = self._replies([self._prompt(asked, history)], sampling)
        return self._answered(asked, reply)

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """Answer several spoken questions at once."""
        asked, prompts = self._all_asked(questions, "answer")
        return [self._answered(message, reply) for message, reply in zip(asked, self._replies(prompts, sampling))]

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        """Answer a spoken question piece by piece. The joined pieces equal what `answer` returns."""
        asked = self._asked(question, "answer")
        prompt = self._prompt(asked, history)
        ids: list[int] = []
        shown = ""
        for (token,) in draws(self.model, [prompt[0]], prompt[1], self.ends, sampling):
            if token is None:
                continue
            ids.append(token)
            if added := self._added(ids, shown):
                yield Piece(text=added)
                shown += added
        answer = self._answered(asked, ids)
        whole = answer.text or ""
        yield Piece(text=whole[len(shown) :] if whole.startswith(shown) else "", answer=answer)

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        """Write down what is said in a sound: the LLM is asked to repeat it."""
        return self.transcribe_batch([sound], sampling)[0]

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """Write down what is said in several sounds at once."""
        _, prompts = self._all_asked(sounds, "transcribe")
        return [self._decode(reply) for reply in self._replies(prompts, sampling.of_transcripts)]

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        """Raises NotSupported: BLSP answers in text."""
        raise NotSupported(self, "say", "it answers in text")

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """Raises NotSupported: BLSP answers in text."""
        raise NotSupported(self, "say", "it answers in text")

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        """Answer a text question in text. history: as for answer."""
        return self._decode(self._replies([self._prompt(text_message(question), history)], sampling)[0])

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """Answer several text questions in text at once."""
        return [
            self._decode(reply)
            for reply in self._replies([self._prompt(text_message(one)) for one in questions], sampling)
        ]

    # --- any instruction

    def respond(self, requests: Sequence[Request], sampling: Sampling = Sampling()) -> list[str]:
        """Respond to recordings by any instruction, several at once.

        Raises: ValueError if a request has neither a recording nor an instruction; AudioError as for answer.
        """
        return self.responses([self.prepared(request) for request in requests], sampling)

    def respond_batch(
        self, sounds: Sequence[Sound], instructions: Sequence[str], sampling: Sampling = Sampling()
    ) -> list[str]:
        """The response to each recording by its instruction. See speechgpt.answers.FollowsInstructions."""
        return self.respond([Request(sound, one) for sound, one in zip(sounds, instructions, strict=True)], sampling)

    def prepared(self, request: Request) -> Prompt:
        """A request as `responses` takes it: with its recording encoded.

        Raises: as `respond`.
        """
        if request.sound is not None:
            parts = (request.instruction,) if request.instruction else ()
            return self._prompt(Message("human", (*parts, self._speech(request.sound))))
        if not request.instruction:
            raise ValueError("there is neither a recording nor an instruction to respond to")
        return self._joined(self.template.instruct(request.instruction))

    def responses(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[str]:
        """Respond to prepared requests, several at once; texts are as the LLM wrote them."""
        return [self._written(reply) for reply in self._replies(prompts, sampling)]

    # --- how likely a reply is

    @torch.inference_mode()
    def losses(self, conversation: Sequence[Message]) -> Tensor:
        """Cross-entropy in nats of each token of a conversation's last reply, and of the token that ends it, (n,).

        Raises: AudioError as for answer; ValueError if the conversation is longer than the context.
        """
        made, states = self._joined(self.template.document(conversation))
        if len(made.ids) > (context := context_length(self.model.llm)):
            raise ValueError(f"the conversation has {len(made.ids)} tokens; the context of this LLM has {context}")
        ids = torch.tensor([made.ids], device=self.device)
        sounds = None
        if states:
            sounds = Sounds(*padded(states), torch.tensor(made.places, device=self.device))
        said = sum(made.train)  # the reply is the end of the row
        embeds = self.model.embed(ids, sounds)
        logits = self.model.llm(inputs_embeds=embeds, logits_to_keep=said + 1).logits[0, :-1]
        return functional.cross_entropy(logits.float(), ids[0, -said:], reduction="none")

    # --- prompts and replies

    def _answered(self, asked: Message, reply: Sequence[int]) -> Answer:
        text = self._decode(reply) or None
        turn = (asked, Message("assistant", (text,))) if text else ()
        return Answer(None, text, None, None, finished=bool(reply) and reply[-1] in self.ends, turn=turn)
