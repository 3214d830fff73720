"""The template of the published SpeechGPT-7B, in which `<eoa>`, `[ta]` and `[ua]` are no tokens but spelled as text.

    prompt   {prefix}[Human]: {text or units} <eoh>. [SpeechGPT]:
    reply    {transcript}; [ta] {answer}; [ua] {units}<eoa>

Upstream renders a string and reads it with transformers' LlamaTokenizer of 2023, which cuts the string at added tokens,
drops the spaces beside them, and gives each piece of text to sentencepiece. The same is done here, part by part:
so ids equal upstream's, and text that spells `<17>` or `[Human]` stays text.

Source: speechgpt/src/infer/cli_infer.py and speechgpt/src/train/cm_sft.py of github.com/0nutation/SpeechGPT @ b290011.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.dialogue import Conversation, Dialogue, Message, Rendered, Reply, part_units
from speechgpt.typed_text import check_unicode
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT, TA, TQ, UA, VocabularyError
from units.notation import EOSP, SOSP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "published"  # its name in speechgpt.json, in extra.template
PIECES = "tokenizer.model"  # the file of the sentencepiece model
PREFIX = (
    "You are an AI assistant whose name is SpeechGPT.\n- SpeechGPT is a intrinsic cross-modal conversational language "
    "model that is developed by Fudan University.  SpeechGPT can understand and communicate fluently with human "
    "through speech or text chosen by the user.\n"
    "- It can perceive cross-modal inputs and generate cross-modal outputs.\n"
)
EOS = "<eos>"  # an added token; a few records end with it
MARKS = (EOA, TQ, TA, UA)  # spelled as text
TAIL = 24  # tokens of a text's end that are searched for `<eoa>`: it has at most five letters, each at most 3 tokens

Spelled = str | list[int]  # text, or ids of units and special tokens
_END = re.compile(f"{re.escape(EOA)}|{re.escape(EOS)}")


@dataclass
class PublishedDialogue(Dialogue):
    """Renders conversations and parses replies as the published SpeechGPT does.

    pieces: the sentencepiece model of the tokenizer.
    """

    pieces: Any = None

    @classmethod
    def from_folder(cls, tokenizer: PreTrainedTokenizerBase, folder: Path, prefix: str = PREFIX) -> PublishedDialogue:
        """Open the sentencepiece model that lies beside a tokenizer.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: the file is damaged, or of another tokenizer.
        """
        return cls(tokenizer, prefix, open_pieces(folder))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interleaving is not None:
            raise ValueError("the published template spells [ta] and [ua] as text: its replies cannot be interleaved")
        size = self.pieces.get_piece_size()
        if size > self.vocab.first_unit_id:
            raise VocabularyError(
                f"{PIECES} has {size} words, but the units of this tokenizer begin at {self.vocab.first_unit_id}, so "
                "text would become units; the two files are not of one checkpoint"
            )

    @property
    def ends(self) -> frozenset[int]:
        """The end of sentence, and `<eos>`."""
        table = self.tokenizer.get_vocab()
        return frozenset(token for token in (self.tokenizer.eos_token_id, table.get(EOS)) if token is not None)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a reply is complete: it has an end, its speech is closed, or its text spells `<eoa>`."""
        if not ids:
            return False
        if ids[-1] in self.ends or ids[-1] == self.vocab.special_ids[EOSP]:
            return True
        return EOA in self.decode_text(ids[-TAIL:])

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, in which nothing becomes a unit or a special token. Raises TextError."""
        check_unicode(text)
        return self.pieces.encode(text)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids; those of units and special tokens are left out."""
        return self.pieces.decode([token for token in ids if token < self.vocab.first_unit_id]).strip()

    def render(self, conversation: Conversation, train_on_prompt: bool = False) -> Rendered:
        """Token ids of a whole conversation, as the published code trains: the end of sentence is the last one.

        Args:
            train_on_prompt: the loss covers everything but the prefix, as in the published code; otherwise the replies.

        Raises:
            ValueError: a reply is one half of a chain, which the published template does not have.
        """
        if any(message.learned != "all" for message in conversation.messages):
            raise ValueError(
                f"{conversation.id} is one half of a chain; the published template has whole chains only. "
                "Leave the sets chain_halves out of this stage's data."
            )
        items: list[tuple[Spelled, bool]] = [(self.prefix, False)]
        for message in conversation.messages:
            if message.role == "human":
                items += [(item, train_on_prompt) for item in self._human_spelled(message)]
            else:
                items += [(item, train_on_prompt) for item in self._opening_spelled()]
                items += [(item, True) for item in self._reply_spelled(Reply.from_parts(message.parts))]
        rendered = self._encoded(items)
        if conversation.messages[-1].role == "assistant" and self.tokenizer.eos_token_id is not None:
            rendered.ids.append(self.tokenizer.eos_token_id)
            rendered.train.append(True)
        return rendered

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids after which the model replies."""
        items: list[Spelled] = [self.prefix]
        for message in messages:
            if message.role == "human":
                items += self._human_spelled(message)
            else:
                items += self._opening_spelled() + self._reply_spelled(Reply.from_parts(message.parts))
        return self._encoded([(item, False) for item in items + self._opening_spelled()]).ids

    def parse_reply(self, ids: Sequence[int], chained: bool = False) -> Reply:
        """Read a reply from generated ids.

        Reading stops at an end, or at `<eoa>`, a next turn, or the end of the speech. `[tq]`, the semicolons and the
        spaces beside `[ta]` and `[ua]` are optional, and each of the two may be missing.
        """
        ids = self._first_turn(list(ids))
        spoken = ids.index(self.vocab.special_ids[SOSP]) if self.vocab.special_ids[SOSP] in ids else None
        units = None if spoken is None else tuple(self.vocab.decode(self._until(ids[spoken:], EOSP)))
        text = _END.split(self.decode_text(ids[:spoken]))[0]
        before, marked, after = text.partition(UA)[0].partition(TA)
        if marked:
            return Reply(_section(before) or None, _section(after), units)
        written = _section(before)
        if chained:
            return Reply(written or None, None, units)
        return Reply(None, None if units is not None and not written else written, units)

    def parse_begun(self, ids: Sequence[int]) -> Reply:
        """As parse_reply, for a reply that is being drawn: what may be the begin of a mark is held back."""
        found = self.parse_reply(ids, chained=True)
        return Reply(_held_back(found.transcript), _held_back(found.text), found.units)

    def _first_turn(self, ids: list[int]) -> list[int]:
        """The ids before an end, or before the next turn's role."""
        roles = {self.vocab.special_ids.get(word) for word in (HUMAN, SPEECHGPT, EOH)}
        cut = next((place for place, token in enumerate(ids) if token in self.ends or token in roles), len(ids))
        return ids[:cut]

    def _until(self, ids: list[int], word: str) -> list[int]:
        token = self.vocab.special_ids[word]
        return ids[: ids.index(token)] if token in ids else ids

    def _human_spelled(self, message: Message) -> list[Spelled]:
        items: list[Spelled] = [[self.vocab.special_id(HUMAN)], ":"]
        for part in message.parts:
            items += [" ", part if isinstance(part, str) else self.vocab.encode(part_units(part))]
        return [*items, " ", [self.vocab.special_id(EOH)], ". "]

    def _opening_spelled(self) -> list[Spelled]:
        return [[self.vocab.special_id(SPEECHGPT)], ": "]

    def _reply_spelled(self, reply: Reply) -> list[Spelled]:
        units = reply.units if reply.speech is None else part_units(reply.speech)
        chained = reply.transcript is not None or (reply.text is not None and units is not None)
        items: list[Spelled] = []
        if chained:
            items.append(f"{reply.transcript}; {TA} " if reply.transcript is not None else f"{TA} ")
        if reply.text is not None:
            items.append(reply.text)
        if units is not None:
            items += [f"; {UA} " if chained else "", self.vocab.encode(units)]
        return [*items, f"{EOA} "]

    def _encoded(self, items: Sequence[tuple[Spelled, bool]]) -> Rendered:
        """Ids of a spelled conversation, with the start of sentence.

        Args:
            items: what is spelled, and whether the loss counts it.
        """
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        rendered = Rendered(bos, [False] * len(bos))
        pieces = _joined(items)
        for place, (item, counted, uncounted) in enumerate(pieces):
            opening = 0
            if isinstance(item, list):
                ids = item
            else:
                text = item.lstrip() if place else item
                text = text.rstrip() if place + 1 < len(pieces) else text
                ids = self.encode_text(text) if text else []
                first = self.encode_text(item[:uncounted].strip()) if uncounted else []
                opening = len(first) if counted and ids[: len(first)] == first else 0
            rendered.ids.extend(ids)
            rendered.train.extend([False] * opening + [counted] * (len(ids) - opening))
        return rendered


def _joined(items: Sequence[tuple[Spelled, bool]]) -> list[tuple[Spelled, bool, int]]:
    """Items with neighbouring texts joined: item, whether the loss counts it, how many first letters it does not."""
    joined: list[tuple[Spelled, bool, int]] = []
    for item, counted in items:
        last = joined[-1] if joined else None
        if isinstance(item, list):
            joined.append((item, counted, 0))
        elif last is not None and isinstance(last[0], str):
            joined[-1] = (last[0] + item, last[1] or counted, last[2] if last[1] else len(last[0]) if counted else 0)
        elif item:
            joined.append((item, counted, 0))
    return joined


def _section(text: str) -> str:
    """Text of a section, without the mark before it and the semicolon that closes it."""
    text = text.strip().removeprefix(TQ).strip()
    return text[:-1].rstrip() if text.endswith(";") else text


def _held_back(text: str | None) -> str | None:
    """A text without an end that may become a mark."""
    if text is None:
        return None
    longest = max(map(len, MARKS))
    for start in range(max(0, len(text) - longest - 1), len(text)):
        end = text[start:].lstrip("; ")
        if any(mark.startswith(end) for mark in (*MARKS, EOS)):
            return text[:start].rstrip("; ")
    return text


def open_pieces(folder: Path) -> Any:
    """The sentencepiece model of a folder. Raises FileNotFoundError; ValueError if it is damaged."""
    from sentencepiece import SentencePieceProcessor

    path = folder / PIECES
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {PIECES}, the sentencepiece model of a published SpeechGPT")
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no sentencepiece model ({error}); copy it again") from error
