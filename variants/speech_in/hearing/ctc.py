"""CTC on the LLM's own tokens: an adapter learns to place sounds near the embeddings of the words that are said.

    embeddings (M, H) of the adapter -> cosines with the LLM's embedding rows, times a scale, and a blank -> CTC

No LLM runs: its embedding rows are all that is needed. An adapter that starts from here learns from few examples what
takes very many from scratch. The rows are those of the tokens that occur in the transcripts.

CTC: Graves et al. 2006, "Connectionist Temporal Classification".

S sounds of a batch, M embeddings of a sound, H width of the LLM, C tokens that can be heard, W tokens that are said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from variants.listening import SpeechLLMConfig

HEAD_FILE = "ctc.safetensors"  # of a finished folder
BLANK = 0  # column of the scores; token i of the head is column i + 1
SCALE = 10.0  # of the cosines, at the start
LATEST = 0.05  # share of the latest step in the average of loudness
MOST_OF_IT = 1 - 1e-6  # the most that a transcript's tokens may have together: the logarithm of the rest is finite
UNLIKELY = -1e4  # a log-probability that adds nothing


class TokenHead(nn.Module):
    """Scores of embeddings for the blank and for C tokens."""

    def __init__(self, tokens: Tensor, rows: Tensor) -> None:
        """
        Args:
            tokens: int64 (C,), ascending: ids of the tokens that can be heard.
            rows: float (C, H): their embeddings in the LLM, which do not learn.
        """
        super().__init__()
        self.tokens: Tensor
        self.rows: Tensor
        self.register_buffer("tokens", tokens)
        self.register_buffer("rows", functional.normalize(rows.detach().float(), dim=-1), persistent=False)
        self.blank = nn.Parameter(functional.normalize(torch.randn(rows.shape[1]), dim=-1))
        self.bias = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.tensor(SCALE).log())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores (n, 1 + C) of embeddings (n, H), the blank's first."""
        directions = functional.normalize(embeddings.float(), dim=-1)
        blank = directions @ functional.normalize(self.blank, dim=-1)
        cosines = torch.cat([blank[:, None], directions @ self.rows.T], dim=1) * self.log_scale.exp()
        return torch.cat([cosines[:, :1] + self.bias, cosines[:, 1:]], dim=1)

    def columns(self, said: Tensor) -> Tensor:
        """Columns of the scores that stand for tokens (W,).

        Raises: ValueError if one of them is not among the head's.
        """
        found = torch.searchsorted(self.tokens, said).clamp(max=len(self.tokens) - 1)
        if not torch.equal(self.tokens[found], said):
            raise ValueError("a transcript has a token that the head does not know; the data changed: begin anew")
        return found + 1


class HearingModel(PreTrainedModel):
    """adapter: encoder states and frames to embeddings (sum of M, H). head: embeddings to scores of tokens.

    loudness: root mean square of the embeddings, an average over the last steps of training.
    """

    config_class = SpeechLLMConfig
    main_input_name = "states"
    _supports_sdpa = _supports_attention_backend = _supports_flash_attn = True  # it has no attention

    def __init__(self, config: SpeechLLMConfig, adapter: nn.Module, head: TokenHead) -> None:
        super().__init__(config)
        self.adapter, self.head = adapter, head
        self.loudness: Tensor
        self.register_buffer("loudness", torch.zeros(()))

    def get_input_embeddings(self) -> Any:
        """None: it reads no tokens."""

    def get_output_embeddings(self) -> Any:
        """None: its rows are a part of the head that does not learn."""

    def forward(self, states: Tensor, frames: Tensor, **_: Any) -> Tensor:
        """Scores (sum of M, 1 + C) of sounds: states (S, N, D) and frames (S,), as the adapter takes them."""
        embeddings = self.adapter(states, frames)
        if self.training:
            now = embeddings.detach().float().square().mean().sqrt()
            self.loudness.copy_(torch.where(self.loudness > 0, self.loudness.lerp(now, LATEST), now))
        return self.head(embeddings)


def ctc_loss(scores: Tensor, counts: Sequence[int], said: Tensor, said_counts: Sequence[int]) -> Tensor:
    """Negative log-likelihood of what is said, summed over sounds.

    CTC looks at the blank and at the tokens of a sound's own transcript, a few columns of the many. All others are one
    more column, so that gradients are those of the whole softmax.

    Args:
        scores: (sum of M, 1 + C). counts: M of each sound.
        said: (sum of W,), as columns of the scores. said_counts: W of each sound.
    """
    scores = scores.float()
    normalisers = scores.logsumexp(-1, keepdim=True)
    parts = zip(scores.split(list(counts)), normalisers.split(list(counts)), said.split(list(said_counts)))
    likely, targets = [], []
    for rows, normaliser, words in parts:
        columns, places = words.unique(return_inverse=True)
        own = rows[:, functional.pad(columns, (1, 0), value=BLANK)] - normaliser
        others = torch.log1p(-own.exp().sum(-1, keepdim=True).clamp(max=MOST_OF_IT))
        likely.append(torch.cat([own, others], dim=1))
        targets.append(places + 1)
    widest = max(one.shape[1] for one in likely)
    batch = nn.utils.rnn.pad_sequence(  # (M, S, columns)
        [functional.pad(one, (0, widest - one.shape[1]), value=UNLIKELY) for one in likely]
    )
    lengths = torch.tensor(counts), torch.tensor(said_counts)
    return functional.ctc_loss(batch, torch.cat(targets), *lengths, blank=BLANK, reduction="sum")


def heard(scores: Tensor, counts: Sequence[int], tokens: Tensor) -> list[list[int]]:
    """The most likely tokens of each sound: the best column of each place, repeats merged, blanks left out.

    Args:
        scores, counts: as for ctc_loss. tokens: of the head.
    """
    found = []
    for columns in scores.argmax(-1).split(list(counts)):
        merged = torch.unique_consecutive(columns)
        found.append(tokens[merged[merged != BLANK] - 1].tolist())
    return found


def places_needed(tokens: Sequence[int]) -> int:
    """The fewest places in which tokens can be said: one each, and a blank between equal neighbours."""
    return len(tokens) + sum(one == two for one, two in zip(tokens, tokens[1:]))


def embedding_rows(llm: Path) -> Tensor:
    """All embedding rows of an LLM, float32 (V, H)."""
    from speechgpt.language_models.whole import open_whole

    model = open_whole(llm, dtype="auto")
    return model.get_input_embeddings().weight.detach().float().clone()


def read_head(folder: Path, rows: Tensor) -> TokenHead:
    """The head that a hearing stage wrote.

    Args:
        rows: all embedding rows of the LLM (V, H).

    Raises: FileNotFoundError if the folder has none; ValueError if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / HEAD_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {HEAD_FILE}: it is not of a stage that learns to hear words")
    try:
        weights = load_file(path)
        head = TokenHead(weights["tokens"], rows[weights["tokens"]])
        head.load_state_dict(weights)
    except (SafetensorError, KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} is damaged, or of another LLM ({error}); copy it again") from error
    return head
