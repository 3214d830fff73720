"""Tokens from an inference engine: any server with OpenAI's completions API that takes and returns token ids.

vLLM and SGLang do: `"prompt": [ids]` and `"return_token_ids": true`. They know special tokens and units as any other
token, so the ids of a prompt are those of `Dialogue`, and no text is encoded twice.

The grammar of a reply is checked here, token by token. Where the engine draws a token that the grammar does not allow,
its stream is closed and the place is drawn again under a bias: for the tokens that are allowed, or against those that
were drawn and are not. So a greedy reply equals that of the local loop, and random ones have its distribution but for
top-k and top-p, which the engine applies before the grammar. A trained model leaves the grammar rarely.
"""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from speechgpt.dialogue import Dialogue
from speechgpt.generation.grammar import Form, Grammar, grammar_of
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.generation.shared import check_stop
from speechgpt.sampling import Sampling, loops

BIAS = 100.0  # OpenAI's largest: a token is as good as certain, or as good as forbidden
MOST_BIASED = 2048  # tokens in one request; where more are allowed, those that were drawn and are not are forbidden
MOST_TRIES = 64  # draws of one token
AT_ONCE = 32  # requests of one batch
TIMEOUT = 120.0  # seconds without a token
KEY_VARIABLE = "SPEECHGPT_LLM_KEY"


class EngineError(RuntimeError):
    """The engine cannot be reached, or does not do what is needed of it."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself.

    model: its name for the model. context: tokens that it holds; None if it does not say.
    """

    model: str
    context: int | None


class Engine:
    """A model that an engine runs, in place of a PreTrainedModel.

    config: of the model, from its folder. device: where the grammar is kept.
    """

    device = torch.device("cpu")

    def __init__(self, url: str, config: PreTrainedConfig, key: str = "") -> None:
        """
        Args:
            url: of its API, such as http://127.0.0.1:8000/v1.
            key: what it asks for as `Authorization: Bearer KEY`.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError(f"an engine needs the openai client ({error}): pip install -e '.[serve]'") from error
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"llm is {url!r}; it is the URL of an API, such as http://127.0.0.1:8000/v1")
        self.url, self.config = url, config
        self._client = openai.OpenAI(base_url=url, api_key=key or "none", timeout=TIMEOUT)
        self._facts: EngineFacts | None = None

    @classmethod
    def for_folder(cls, url: str, folder: str | Path, key: str = "") -> Engine:
        """The engine that runs the model of a folder, whose weights are not read."""
        return cls(url, AutoConfig.from_pretrained(folder), key)

    # --- what it says of itself

    @property
    def facts(self) -> EngineFacts:
        """Asked for once. Raises EngineError."""
        if self._facts is None:
            with self._errors():
                models = self._client.models.list().data
            if len(models) != 1:
                names = ", ".join(model.id for model in models) or "none"
                raise EngineError(f"the engine at {self.url} serves {len(models)} models ({names}); it must serve one")
            self._facts = EngineFacts(models[0].id, getattr(models[0], "max_model_len", None))
        return self._facts

    @property
    def context(self) -> int:
        """Tokens that the model can hold, as far as both the model and the engine go."""
        own = self.config.get_text_config().max_position_embeddings
        return min(own, self.facts.context or own)

    def check(self, prompt: list[int]) -> None:
        """Draw a token, to see that the engine takes and returns ids. Raises EngineError."""
        with closing(self._stream(prompt, Sampling(), 1, [])) as stream:
            if next(stream, None) is None:
                raise EngineError(f"the engine at {self.url} draws nothing")

    # --- drawing

    def draws(
        self, dialogue: Dialogue, prompts: Sequence[list[int]], form: Form | KnownTexts, sampling: Sampling
    ) -> Iterator[list[int | None]]:
        """As speechgpt.generation.generate.draws."""
        context, longest = self.context, max(map(len, prompts))
        if longest >= context:
            raise ValueError(
                f"the prompt has {longest} tokens and this model's context is {context}; give less audio or text"
            )
        grammar = grammar_of(dialogue, form, self.config.get_text_config().vocab_size, self.device)
        begins = grammar.begins(len(prompts))
        if len(prompts) == 1:
            yield from ([token] for token in self._reply(dialogue, prompts[0], grammar, begins[0], sampling))
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(prompts))) as pool:
            replies = list(
                pool.map(
                    lambda one: one[0].run(lambda: list(self._reply(dialogue, one[1], grammar, one[2], sampling))),
                    [(contextvars.copy_context(), prompt, begin) for prompt, begin in zip(prompts, begins)],
                )
            )
        yield from map(list, itertools.zip_longest(*replies))

    def _reply(
        self, dialogue: Dialogue, prompt: list[int], grammar: Grammar, begin: int, sampling: Sampling
    ) -> Iterator[int]:
        """The tokens of one reply, up to and including its end. begin: the grammar's first state."""
        room, ends = min(sampling.max_new_tokens, self.context - len(prompt)), sorted(dialogue.ends)
        reply: list[int] = []
        state = torch.tensor([begin])

        def over() -> bool:
            return len(reply) == room or dialogue.ended(reply) or (sampling.end_loops and loops(reply))

        while True:
            stream, wrong = self._stream(prompt + reply, sampling, room - len(reply), ends), None
            with closing(stream):
                for token in stream:
                    if not grammar.allowed(state)[0, token]:
                        wrong = token
                        break
                    reply.append(token)
                    state = grammar.after(state, torch.tensor([token]))
                    yield token
                    if over():
                        return
            # An engine may also have ended where none may end, or keep the end to itself.
            token = self._drawn_again(prompt + reply, grammar.allowed(state)[0], wrong, sampling)
            reply.append(token)
            state = grammar.after(state, torch.tensor([token]))
            yield token
            if over():
                return

    def _drawn_again(self, ids: list[int], allowed: torch.Tensor, wrong: int | None, sampling: Sampling) -> int:
        """A token that is allowed. allowed: bool (V,)."""
        few = allowed.nonzero()[:, 0].tolist()
        if len(few) == 1:
            return few[0]
        bias = dict.fromkeys(few, BIAS) if len(few) <= MOST_BIASED else {}
        if not bias and wrong is not None:
            bias[wrong] = -BIAS
        for _ in range(MOST_TRIES):
            with closing(self._stream(ids, sampling, 1, [], bias)) as stream:
                token = next(stream, None)
            if token is None:
                break
            if allowed[token]:
                return token
            bias[token] = -BIAS
        raise EngineError(f"the engine at {self.url} draws no token that the grammar allows; does it take logit_bias?")

    def _stream(
        self, ids: list[int], sampling: Sampling, room: int, ends: list[int], bias: dict[int, float] | None = None
    ) -> Generator[int, None, None]:
        """Tokens that the engine draws after some ids."""
        extra: dict[str, Any] = {"return_token_ids": True, "stop_token_ids": ends, "skip_special_tokens": False}
        if sampling.top_k:
            extra["top_k"] = sampling.top_k
        given: dict[str, Any] = {"logit_bias": {str(token): value for token, value in bias.items()}} if bias else {}
        if sampling.seed is not None:
            given["seed"] = (sampling.seed + len(ids)) % 2**31  # a stream that goes on draws other numbers
        with self._errors():
            stream = self._client.completions.create(
                model=self.facts.model, prompt=ids, max_tokens=room, temperature=sampling.temperature,
                top_p=sampling.top_p, stream=True, extra_body=extra, **given,
            )  # fmt: skip
            try:
                for chunk in stream:
                    check_stop()
                    for choice in chunk.choices[:1]:
                        tokens = getattr(choice, "token_ids", None)
                        if tokens is None and choice.text:
                            raise EngineError(
                                f"the engine at {self.url} returns no token ids; it must know return_token_ids, as "
                                "vLLM (since 0.10.2) and SGLang do"
                            )
                        yield from tokens or ()
            finally:
                stream.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the client as EngineError."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            said = error.response.text[:300].strip() if error.response.is_closed else error.message
            raise EngineError(f"the engine at {self.url} replied with status {error.status_code}: {said}") from error
        except openai.APIConnectionError as error:
            raise EngineError(f"the engine at {self.url} cannot be reached: {error.__cause__ or error}") from error
        except openai.APIError as error:
            raise EngineError(f"the engine at {self.url} failed: {error.message}") from error
