"""A stage that learns interleaved replies: the same set, other documents; the finished model asks for such replies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stage_configs import parsed
from tiny_run import CODEBOOK, K, make_run, opened, stage_config
from transformers import AutoTokenizer

from instruct_data.build.records import read_conversations, write_conversations
from speechgpt.dialogue import Conversation, Dialogue, Message, Reply
from speechgpt.generation.generate import draws, generate
from speechgpt.generation.stream import ReplyStream
from speechgpt.inference import SpeechGPT
from speechgpt.interleaving import InterleavedReplies
from speechgpt.sampling import Sampling
from speechgpt.vocab import TA, UnitVocab, new_words
from stages.config import Source, StageConfig
from stages.packing.tokens import tokenise
from stages.train import train
from stages.unit_system.documents import DOCUMENTS_VERSION
from stages.unit_system.opened import unit_noise
from stages.unit_system.samples import prompt_end, reply_opening
from units.vocoder.heads.configs import VocosConfig
from units.vocoder.unit_vocoder import UnitVocoder
from variants.blsp.config import BlspConfig
from variants.llama_omni.config import OmniConfig

HOW = InterleavedReplies(2, 3)
SAID = ["red blue green one two three", "the cat is my dog of one", "two dog"]


def chains() -> list[Conversation]:
    """Spoken questions with long and short answers."""
    found = []
    for i, text in enumerate(SAID):
        question, spoken = (i, i + 1, i + 2), tuple((i + unit) % K for unit in range(3 * (7 - i)))
        turns = (Message("human", (question,)), Message("assistant", (text.partition(" ")[0], text, spoken)))
        found.append(Conversation(turns, "chain", f"c{i}"))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    write_conversations(run / "data/chain.jsonl.gz", chains(), CODEBOOK, 0)
    return run


@pytest.fixture(scope="module")
def widened(run: Path):
    """The tokenizer after stage 1."""
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    tokenizer.add_tokens(new_words(CODEBOOK.size), special_tokens=True)
    return tokenizer


def third(run: Path, **changes) -> StageConfig:
    return stage_config(run, stage="stage3", out="stage3", data=[Source("data/chain.jsonl.gz")], **changes)


# --- documents


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_a_set_of_chains_is_written_as_the_stage_says(
    run: Path, widened, tmp_path: Path, train_on_prompt: bool
) -> None:
    source = Source("data/chain.jsonl.gz")
    found = {}
    for how in (None, HOW, InterleavedReplies(2, 4)):
        config = third(run, interleave_replies=how, train_on_prompt=train_on_prompt, prefix="Be kind.")
        documents = tokenise(source, opened(config, widened), tmp_path)
        dialogue = Dialogue(widened, "Be kind.", interleaving=how)
        for i, conversation in enumerate(read_conversations(run / "data/chain.jsonl.gz")):
            ids, counted = documents.document(i)
            rendered = dialogue.render(conversation, train_on_prompt)
            assert (ids.tolist(), counted.tolist()) == (rendered.ids, rendered.train)
            said = dialogue.parse_reply(ids.tolist()[prompt_end(ids, dialogue._opening("assistant")) :])
            assert said.parts() == conversation.messages[1].parts
        found[how] = documents.tokens.tolist()
    assert len(list(tmp_path.glob("*/facts.json"))) == len({tuple(tokens) for tokens in found.values()}) == 3


def test_caches_of_chains_keep_their_names(run: Path, widened) -> None:
    key = opened(third(run), widened).cache_key(Source("data/chain.jsonl.gz"))
    assert key == ["speechgpt", DOCUMENTS_VERSION, "", False, CODEBOOK.fingerprint]


def test_noise_and_samples_see_the_prompt_alone(run: Path, widened) -> None:
    vocab = UnitVocab.from_words(widened.get_vocab())
    dialogue = Dialogue(widened, interleaving=HOW)
    for conversation in chains():
        rendered = dialogue.render(conversation)
        labels = np.where(rendered.train, rendered.ids, -100)
        columns = {"input_ids": np.array(rendered.ids), "labels": labels}
        unit_noise(columns, np.random.default_rng(0), vocab, 0.99)
        start = prompt_end(rendered.ids, reply_opening(widened, vocab))
        assert rendered.ids[:start] == dialogue.prompt(conversation.messages[:1])
        assert columns["input_ids"][start:].tolist() == rendered.ids[start:]
        assert columns["input_ids"][:start].tolist() != rendered.ids[:start]


# --- settings


def test_the_command_line_sets_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "stages/configs/toy/stage3.yaml"
    assert parsed(monkeypatch, file).interleave_replies is None
    given = parsed(monkeypatch, file, "--interleave_replies.text", "13", "--interleave_replies.units", "26")
    assert given.interleave_replies == InterleavedReplies(13, 26)


@pytest.mark.parametrize("kind", ["text", "units", "cross_modal"])
def test_stages_without_such_replies_refuse_it(run: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=f"interleave_replies is for kind: chain.* kind {kind}"):
        third(run, interleave_replies=HOW, kind=kind)


@pytest.mark.parametrize("config, kind", [(BlspConfig, "speech"), (OmniConfig, "speaking")])
def test_other_systems_refuse_it(config: type[StageConfig], kind: str) -> None:
    fields = {"model": "llm", "out": "out", "data": [Source("a.jsonl")], "training": {"max_steps": 1}, "kind": kind}
    with pytest.raises(ValueError, match="interleave_replies is for kind: chain"):
        config(stage="one", interleave_replies=HOW, **fields)


# --- training


@pytest.fixture(scope="module")
def trained(run: Path) -> dict[str, SpeechGPT]:
    """Two models of the same set: one learned interleaved replies, the other one chains."""
    learning = {"max_steps": 110, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "logging_steps": 50}
    data = [Source("data/chain.jsonl.gz", hold_out=False)]
    rest = {"data": data, "block_size": 128, "dev_documents": 0, "training": learning}
    found = {}
    for name, how in (("interleaved", HOW), ("chains", None)):
        folder = train(stage_config(run, stage="stage3", out=name, interleave_replies=how, **rest))
        found[name] = SpeechGPT.from_pretrained(folder)
    return found


def test_a_finished_model_asks_for_the_replies_that_it_learned(trained: dict[str, SpeechGPT]) -> None:
    for name, how in (("interleaved", HOW), ("chains", None)):
        gpt = trained[name]
        assert gpt.dialogue.interleaving == how
        assert gpt.facts.extra == ({} if how is None else {"interleave_replies": {"text": 2, "units": 3}})
        assert gpt.facts.config["interleave_replies"] == (None if how is None else how.record())
        prompts = [gpt.dialogue.prompt(conversation.messages[:1]) for conversation in chains()]
        drawn = generate(gpt.model, gpt.dialogue, prompts, gpt._form, Sampling())
        assert [gpt.dialogue.render(conversation).ids for conversation in chains()] == [
            prompt + reply for prompt, reply in zip(prompts, drawn)
        ]
        stretches = max(reply.count(gpt.dialogue.vocab.special_id(TA)) for reply in drawn)
        assert stretches == 1 if how is None else stretches > 2


def test_the_first_sound_comes_before_that_of_the_chain(trained: dict[str, SpeechGPT]) -> None:
    torch.manual_seed(5)
    settings = VocosConfig(width=16, blocks=1, kernel=3, embedding_dim=8, duration_width=8)
    vocoder = UnitVocoder(CODEBOOK, settings).eval()
    asked = chains()[0]
    heard_at, said, wavs = {}, {}, {}
    for name, gpt in trained.items():
        prompt = gpt.dialogue.prompt(asked.messages[:1])
        reply = ReplyStream(gpt.dialogue, draws(gpt.model, gpt.dialogue, [prompt], gpt._form, Sampling()))
        pieces = []
        for piece in reply.pieces(vocoder):
            if piece.wav is not None:
                heard_at.setdefault(name, len(reply.ids))
            pieces.append(piece)
        said[name] = gpt.dialogue.parse_reply(reply.finish())
        assert "".join(piece.text for piece in pieces) == said[name].text
        wavs[name] = np.concatenate([piece.wav for piece in pieces if piece.wav is not None])
    assert said["interleaved"] == said["chains"] == Reply.from_parts(asked.messages[1].parts)
    np.testing.assert_allclose(wavs["interleaved"], wavs["chains"], atol=1e-5)
    assert heard_at["interleaved"] < heard_at["chains"]
