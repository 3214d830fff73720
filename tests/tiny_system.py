"""A second system, for tests only: a linear layer maps mel frames to input embeddings of an LLM, which replies in text.

    [bos] question  M places held free  [eos]  answer  [eos]

It holds everything that a package with a system of its own would hold: the trainer's side (TinySystem) and the side
that talks (TinyTalker). No code outside tests/ names it.

M mel frames of a question, F mel bands, H width of the LLM, B blocks of a batch, L tokens of a block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instruct_data.build.records import read_conversations, write_conversations
from speechgpt.answers import Answer, NotSupported, Piece
from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.dialogue import Conversation, Message, Speech
from stages.config import Source, StageConfig
from stages.held_out import held_out_report
from stages.packing.attention import bounds, takes_bounds
from stages.packing.blocks import PackedBlocks, flattened, stacked
from stages.planning.size import Size, count
from stages.start import find_start
from stages.system import Column, Documents, Opened
from units.audio import SAMPLE_RATE, load_wav, save_wav
from units.runtime.provenance import fingerprint

F = 8  # mel bands
HOP = 1600  # samples: 10 frames a second
PROMPT = "question"
ADAPTER = "adapter.safetensors"
LLM = "llm"  # folder of the LLM, where it was trained too


@functools.cache
def mel_basis() -> np.ndarray:
    """Mel filters, float32 (F, HOP // 2 + 1)."""
    import librosa

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=HOP, n_mels=F).astype(np.float32)


def mel_frames(wav: np.ndarray) -> np.ndarray:
    """Log-mels of a wav, float32 (M, F).

    Raises: ValueError if it is shorter than a frame.
    """
    frames = len(wav) // HOP
    if not frames:
        raise ValueError(f"the wav has {len(wav)} samples; a frame has {HOP}")
    power = np.abs(np.fft.rfft(wav[: frames * HOP].reshape(frames, HOP) * np.hanning(HOP))) ** 2
    return np.log(power.astype(np.float32) @ mel_basis().T + 1e-3)


# --- the model


class TinyConfig(PreTrainedConfig):
    """The LLM's config with a name of its own around it."""

    model_type = "tiny_speech"

    def __init__(self, llm: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.llm = llm or {}
        super().__init__(**kwargs)


class TinySpeechLLM(PreTrainedModel):
    """adapter: mel frames to embeddings. llm: a causal LLM."""

    config_class = TinyConfig
    _supports_sdpa = _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: TinyConfig, llm: Any) -> None:
        super().__init__(config)
        self.llm = llm
        self.adapter = nn.Linear(F, llm.config.hidden_size)

    def get_input_embeddings(self) -> Any:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.llm.get_output_embeddings()

    def embed(self, input_ids: Tensor, mel: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        """Input embeddings (B, L, H); those at `place` (n,), counted over all rows, are adapted mel frames (n, F)."""
        embeds = self.get_input_embeddings()(input_ids)
        if mel is None or place is None:
            return embeds
        adapted = self.adapter(mel).to(embeds.dtype)
        return embeds.flatten(0, 1).index_copy(0, place, adapted).view_as(embeds)

    def forward(self, input_ids: Tensor, mel: Tensor | None = None, place: Tensor | None = None, **kwargs: Any) -> Any:
        return self.llm(inputs_embeds=self.embed(input_ids, mel, place), use_cache=False, **kwargs)


# --- training


def collate(blocks: list[dict[str, Tensor]], as_row: bool) -> dict[str, Any]:
    """Blocks as a batch; places are counted over all of its rows."""
    common = [{name: block[name] for name in ("input_ids", "labels", "position_ids")} for block in blocks]
    batch = flattened(common) if as_row else stacked(common)
    spoken = [(row, block) for row, block in enumerate(blocks) if "mel" in block]
    if spoken:
        length = len(blocks[0]["input_ids"])
        batch["mel"] = torch.cat([block["mel"] for _, block in spoken])
        batch["place"] = torch.cat([block["place"] + block["place_start"] + row * length for row, block in spoken])
    return batch


def with_adapter(folder: Path, start: str | Path) -> TinySpeechLLM:
    """The model of an LLM and the adapter in a folder."""
    llm = AutoModelForCausalLM.from_pretrained(start)
    model = TinySpeechLLM(TinyConfig(llm.config.to_dict()), llm)
    missing, unexpected = model.load_state_dict(load_file(folder / ADAPTER), strict=False)
    assert not unexpected and not [name for name in missing if name.startswith("adapter.")]
    return model


class TinyOpened(Opened):
    parts = {"adapter": ("adapter.",), "llm": ("llm.",)}
    model: TinySpeechLLM

    def __init__(self, config: StageConfig, model: TinySpeechLLM, tokenizer: Any, start: Path) -> None:
        super().__init__(config, model, tokenizer)
        self.start = start

    @property
    def language_model(self) -> Any:
        return self.model.llm

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        conversations = read_conversations(path)
        for conversation in conversations:
            question, answer = conversation.messages
            (part,) = question.parts
            written = "".join(part for part in answer.parts if isinstance(part, str))
            mel = np.empty((0, F), np.float32)
            if isinstance(part, Speech):
                mel = mel_frames(load_wav(conversations.audio_path(part), part.start, part.duration))
            prompt, place = prompt_ids(self.tokenizer, len(mel), part if isinstance(part, str) else "")
            reply = [*text_ids(self.tokenizer, written), self.tokenizer.eos_token_id]
            ids = np.array(prompt + reply, np.int32)
            train = np.arange(len(ids)) >= len(prompt)
            counts = np.array([len(mel)])
            columns = {"mel": Column(mel, counts), "place": Column(np.array(place, np.int64), counts)}
            yield Documents(conversation.task, ids, train, np.array([len(ids)]), columns)

    def files(self, source: Source, path: Path) -> list[Path]:
        conversations = read_conversations(path)
        parts = [part for one in conversations for message in one.messages for part in message.parts]
        return [path, *sorted({conversations.audio_path(part) for part in parts if isinstance(part, Speech)})]

    def cache_key(self, source: Source) -> list[Any]:
        return ["tiny", 1, F, HOP, PROMPT]

    def collator(self) -> Any:
        return functools.partial(collate, as_row=takes_bounds(self.language_model))

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        logits = model(**inputs).logits[:, :-1].flatten(0, 1).float()
        labels = batch["labels"][:, 1:].flatten()
        return nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / items

    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        return held_out_report(model, held_out, chosen, lambda tokens: {"text": tokens >= 0}, logits_of)

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter alone where the LLM is frozen, and lies where the stage started; otherwise the LLM too."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = model.state_dict() if state_dict is None else state_dict
        adapter = {name: weight.contiguous() for name, weight in weights.items() if name.startswith("adapter.")}
        save_file(adapter, folder / ADAPTER)
        model.config.save_pretrained(folder)
        if self.llm_learns:
            llm = {name.removeprefix("llm."): weight for name, weight in weights.items() if name.startswith("llm.")}
            model.llm.save_pretrained(folder / LLM, state_dict=llm)

    @property
    def llm_learns(self) -> bool:
        return self.config.trainable == "all" or "llm" in self.config.trainable

    def load(self, folder: Path) -> TinySpeechLLM:
        """The adapter, on its LLM."""
        return with_adapter(folder, folder / LLM if self.llm_learns else self.start)

    def facts(self) -> CheckpointFacts:
        llm = self.config.at(self.config.out) / LLM if self.llm_learns else self.start
        extra = {"llm": str(llm.absolute()), "fingerprint": fingerprint(llm), "bands": F}
        config = dataclasses.asdict(self.config)
        return CheckpointFacts(None, self.config.stage, config=config, system=TinySystem.name, extra=extra)


class TinySystem:
    """The system; `opened` keeps what was opened, for tests to look into."""

    name = "tiny"

    def __init__(self) -> None:
        self.opened: list[TinyOpened] = []

    def completion_file(self, config: StageConfig) -> str:
        return FILE

    def open(self, config: StageConfig, **loading: Any) -> TinyOpened:
        start = Path(find_start(config, whole=True))
        llm = AutoModelForCausalLM.from_pretrained(start, **loading)
        torch.manual_seed(config.seed)
        model = TinySpeechLLM(TinyConfig(llm.config.to_dict()), llm)
        self.opened.append(TinyOpened(config, model, AutoTokenizer.from_pretrained(start), start))
        return self.opened[-1]

    def size(self, config: StageConfig, file: Path | None) -> Size:
        with torch.device("meta"):
            shape = AutoConfig.from_pretrained(find_start(config, whole=True))
            model = TinySpeechLLM(TinyConfig(shape.to_dict()), AutoModelForCausalLM.from_config(shape))
        return count(model, shape, config, TinyOpened.parts)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text; nothing in it becomes a special token."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, frames: int, text: str = "") -> tuple[list[int], list[int]]:
    """Ids of a prompt with `frames` places held free, and these places."""
    opening = [tokenizer.bos_token_id, *text_ids(tokenizer, PROMPT)]
    places = list(range(len(opening), len(opening) + frames))
    pad = [tokenizer.eos_token_id] * frames
    return [*opening, *pad, *text_ids(tokenizer, text), tokenizer.eos_token_id], places


def logits_of(model: Any, block: dict[str, Tensor]) -> Tensor:
    """Logits (1, L, V) of one packed block."""
    llm = getattr(model, "module", model).llm
    batch = collate([block], as_row=takes_bounds(llm))
    packed = bounds(block["position_ids"]) if takes_bounds(llm) else {}
    batch = {name: part.to(model.device) for name, part in batch.items() if name != "labels" and name not in packed}
    return model(**batch, **packed).logits


# --- talking


class TinyTalker:
    """The SpeechModel of a finished folder."""

    capabilities = frozenset({"answer", "transcribe"})
    sample_rate = SAMPLE_RATE

    def __init__(self, folder: Path, model: TinySpeechLLM, tokenizer: Any) -> None:
        self.folder, self.model, self.tokenizer = folder, model.eval(), tokenizer

    @property
    def name(self) -> str:
        return f"tiny {fingerprint(self.folder)}"

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str | None = None) -> TinyTalker:
        facts = CheckpointFacts.load(folder)
        if fingerprint(Path(facts.extra["llm"])) != facts.extra["fingerprint"]:
            raise ValueError(f"{facts.extra['llm']} is not the LLM that {folder} was trained with")
        model = with_adapter(Path(folder), facts.extra["llm"])
        return cls(Path(folder), model.to(device), AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def _reply(self, sound: Any, limit: int) -> str:
        wav = sound if isinstance(sound, np.ndarray) else load_wav(sound)
        mel = torch.from_numpy(mel_frames(wav))
        ids, place = prompt_ids(self.tokenizer, len(mel))
        written: list[int] = []
        while len(written) < limit:
            tokens = torch.tensor([ids + written])
            logits = self.model(tokens, mel=mel, place=torch.tensor(place)).logits[0, -1]
            if (chosen := int(logits.argmax())) == self.tokenizer.eos_token_id:
                break
            written.append(chosen)
        return self.tokenizer.decode(written)

    def answer(self, question: Any, sampling: Any = None, history: Sequence[Message] = ()) -> Answer:
        return Answer(None, self._reply(question, 20), None, None)

    def answer_batch(self, questions: Sequence[Any], sampling: Any = None) -> list[Answer]:
        return [self.answer(question) for question in questions]

    def stream(self, question: Any, sampling: Any = None, history: Sequence[Message] = ()) -> Iterator[Piece]:
        answer = self.answer(question)
        yield Piece(text=answer.text or "", answer=answer)

    def transcribe(self, sound: Any, sampling: Any = None) -> str:
        return self._reply(sound, 20)

    def transcribe_batch(self, sounds: Sequence[Any], sampling: Any = None) -> list[str]:
        return [self.transcribe(sound) for sound in sounds]

    def say(self, text: str, sampling: Any = None) -> Answer:
        raise NotSupported(self, "say")

    def say_batch(self, texts: Sequence[str], sampling: Any = None) -> list[Answer]:
        raise NotSupported(self, "say")

    def chat(self, question: str, sampling: Any = None, history: Sequence[Message] = ()) -> str:
        raise NotSupported(self, "chat")

    def chat_batch(self, questions: Sequence[str], sampling: Any = None) -> list[str]:
        raise NotSupported(self, "chat")


# --- data


def tone(pitch: float, seconds: float) -> np.ndarray:
    """A sine of 16 kHz, float32 (T,)."""
    return np.sin(2 * np.pi * pitch * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32) * 0.3


PITCHES = {"low": 200.0, "middle": 800.0, "high": 3000.0}


def write_spoken_set(folder: Path, count: int = 30, seed: int = 0) -> Path:
    """Conversations in which a tone is heard and its pitch is named; every fifth is a text question."""
    draw = np.random.default_rng(seed)
    found: list[Conversation] = []
    for i in range(count):
        name = list(PITCHES)[i % len(PITCHES)]
        part: str | Speech = name
        if i % 5:
            seconds = float(draw.uniform(0.5, 1.2))
            save_wav(folder / f"wav/t{i}.wav", tone(PITCHES[name] * float(draw.uniform(0.9, 1.1)), seconds))
            part = Speech(f"wav/t{i}.wav")
        messages = (Message("human", (part,)), Message("assistant", (f"{name} tone {i}",)))
        found.append(Conversation(messages, "pitch" if i % 5 else "chat", f"t{i}"))
    path = folder / "spoken.jsonl"
    write_conversations(path, found, None, seed)
    return path
