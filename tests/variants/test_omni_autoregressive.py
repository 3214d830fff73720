"""The speech decoder that writes one unit after the other: turns, loss, streams, and a model that has it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_omni import DECODER, make_omni_run, omni_config
from torch import Tensor
from torch.nn import functional

from speechgpt.sampling import Sampling
from stages.packing.blocks import PackedBlocks, load_blocks
from stages.train import train
from variants.llama_omni import latency
from variants.llama_omni.inference import LlamaOmni
from variants.llama_omni.network.autoregressive import NO_TARGET, AutoregressiveDecoder, turns
from variants.llama_omni.network.ctc_decoder import CtcDecoder
from variants.llama_omni.network.decoder import Answers
from variants.llama_omni.network.decoders import make_decoder
from variants.llama_omni.network.shapes import DecoderShape, Speaking
from variants.llama_omni.records import DECODER_FILE, OmniFacts
from variants.llama_omni.stages.system import OMNI_SYSTEM
from variants.llama_omni.upstream import export
from variants.speech_in.batch import lengths_of

H, K = 12, 7
SHAPE = dataclasses.replace(DECODER, kind="autoregressive", input="gate", read=2, write=5, upsample=12)
SHORT = Sampling(max_new_tokens=12)


def decoder_of(read: int = 2, write: int = 3, seed: int = 0, upsample: int = 4) -> AutoregressiveDecoder:
    torch.manual_seed(seed)
    shape = DecoderShape(2, 16, 2, 24, upsample, "gate", "autoregressive", read, write)
    made = make_decoder(shape, Speaking(H, K))
    assert isinstance(made, AutoregressiveDecoder)
    return made.eval()


# --- turns


def test_turns_of_the_paper() -> None:
    """Read 3, write 10; 7 words and 26 units: 6 words in two turns, the last one and the separator, and the rest."""
    inputs, targets = turns(7, 26, 3, 10)
    assert inputs == [0, 1, 2, *range(7, 17), 3, 4, 5, *range(17, 27), 6, 33, *range(27, 33)]
    free = [NO_TARGET]
    assert targets == [*free * 2, *range(10), *free * 3, *range(10, 20), *free * 2, *range(20, 27)]


@given(st.integers(1, 12), st.integers(1, 60), st.integers(1, 5), st.integers(1, 12))
def test_every_unit_and_the_end_are_written_once_and_in_order(tokens: int, units: int, read: int, write: int) -> None:
    inputs, targets = turns(tokens, units, read, write)
    assert len(inputs) == len(targets)
    assert [target for target in targets if target != NO_TARGET] == list(range(units + 1))
    said = [place for place in inputs if place < tokens]
    assert said == list(range(len(said)))
    assert [place - tokens for place in inputs if tokens <= place < tokens + units] == list(range(units))
    assert (tokens + units in inputs) == (units >= tokens // read * write)  # else it ends before the text does
    written = 0
    for place, target in zip(inputs, targets):  # no unit is written before the words of its turn are read
        written += target != NO_TARGET
        assert (
            target == NO_TARGET
            or tokens + units in inputs
            or written <= (place + 1 if place < tokens else units + 1) * write
        )


def test_units_may_end_before_the_text() -> None:
    assert turns(6, 2, 1, 2) == ([0, 6, 7, 1], [0, 1, NO_TARGET, 2])


# --- the decoder


def test_the_gate_is_the_published_one() -> None:
    """fusion() of llama_omni2/model/speech_generator/speech_generator.py (c8afa90): rep g + emb (1 - g)."""
    decoder = decoder_of()
    states, words = torch.randn(5, H), torch.randn(5, H)
    decoder.take_scale(words)
    first, _, second = decoder.input_proj  # type: ignore[misc]
    rep = second(functional.relu(first(states)))
    emb = decoder.word_proj(words / words.square().mean().sqrt())
    g = torch.sigmoid(functional.linear(torch.cat([rep, emb], -1), decoder.gate.weight, decoder.gate.bias))
    torch.testing.assert_close(decoder.tokens(states, words), rep * g + emb * (1 - g))
    assert (first.out_features, second.out_features) == (2 * H, 16)


def answers_of(lengths: list[int], units: list[list[int]]) -> Answers:
    return Answers(torch.arange(0), lengths, torch.tensor(sum(units, [])), list(map(len, units)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("read", "write"), [(1, 1), (2, 3), (3, 10)])
def test_what_is_trained_is_what_is_written(read: int, write: int, seed: int) -> None:
    """Given its own units, each target is the likeliest symbol: the rows of training are those of the stream."""
    decoder = decoder_of(read, write, seed)
    decoder.output_proj.bias.data[decoder.end] = -1e4  # it never ends, and is cut
    tokens = torch.randn(7, 16)
    (said,) = decoder.units_of(tokens, [7])
    assert len(said) == 7 * 4
    logits, targets = decoder(tokens, answers_of([7], [said]))
    assert targets.tolist() == [*logits[:-1].argmax(-1).tolist(), decoder.end]


def test_answers_together_score_as_each_alone() -> None:
    decoder = decoder_of()
    lengths, units = [3, 1, 5], [[1, 2, 3, 4], [6], [0, 0, 5, 2, 1, 1, 3]]
    tokens = torch.randn(9, 16)
    alone = [
        decoder.loss(part, answers_of([length], [row]))
        for part, length, row in zip(tokens.split(lengths), lengths, units)
    ]
    torch.testing.assert_close(decoder.loss(tokens, answers_of(lengths, units)), torch.stack(alone).sum())
    assert decoder.units_of(tokens, lengths) == [
        decoder.units_of(part, [len(part)])[0] for part in tokens.split(lengths)
    ]


def test_the_loss_is_the_cross_entropy_of_units_and_ends() -> None:
    decoder = decoder_of(read=2, write=3)
    tokens, units = torch.randn(3, 16), [4, 1, 1, 5]
    rows = [*tokens[:2], *decoder.unit_embeddings.weight[[4, 1, 1]], tokens[2], *decoder.unit_embeddings.weight[[K, 5]]]
    scores = decoder.output_proj(decoder.hidden(torch.stack(rows)[None])[0]).log_softmax(-1)
    wanted = [(1, 4), (2, 1), (3, 1), (6, 5), (7, K)]
    expected = -sum(scores[place, symbol] for place, symbol in wanted)
    torch.testing.assert_close(decoder.loss(tokens, answers_of([3], [units])), expected)


def test_later_words_change_no_earlier_unit() -> None:
    decoder = decoder_of(read=1, write=2)
    tokens = torch.randn(6, 16)
    changed = torch.cat([tokens[:4], torch.randn(2, 16)])
    streams = decoder.stream(), decoder.stream()
    first, second = ([stream.read(token) for token in rows] for stream, rows in zip(streams, (tokens, changed)))
    assert first[:4] == second[:4]


class Silent(AutoregressiveDecoder):
    """One that says its end at once."""

    def hidden(self, rows: Tensor, cache=None) -> Tensor:
        with torch.no_grad():
            self.output_proj.bias[self.end] = 1e6
        return super().hidden(rows, cache)


def test_after_the_end_nothing_is_written() -> None:
    decoder = Silent(DecoderShape(1, 16, 2, 24, 4, "state", "autoregressive", 1, 2), Speaking(H, K)).eval()
    stream = decoder.stream()
    assert [stream.push(torch.randn(H)) for _ in range(3)] == [[], [], []] and list(stream.finish()) == []
    assert list(decoder.stream().finish()) == []  # no word was read


def test_shapes_out_of_range_are_refused() -> None:
    for changes, named in (
        ({"kind": "diffusion"}, "ctc or autoregressive"),
        ({"input": "word"}, "state or state_and_word or gate"),
        ({"read": 0}, "read"),
        ({"write": 0}, "write"),
    ):
        with pytest.raises(ValueError, match=named):
            DecoderShape(**changes)


def test_a_ctc_decoder_may_have_the_gate() -> None:
    decoder = make_decoder(dataclasses.replace(DECODER, input="gate"), Speaking(H, K))
    assert isinstance(decoder, CtcDecoder) and decoder.tokens(torch.randn(2, H), torch.randn(2, H)).shape == (2, 32)


# --- a stage, and its model


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_omni_run(tmp_path_factory.mktemp("omni"))
    once = {"eval_steps": 75, "save_steps": 75}
    train(omni_config(run, training={"max_steps": 80, "learning_rate": 5e-3, **once}), system=OMNI_SYSTEM)
    stated = omni_config(run, kind="speaking", decoder=SHAPE, training={"max_steps": 150, **once})
    train(stated, system=OMNI_SYSTEM)
    return run


@pytest.fixture(scope="module")
def model(run) -> LlamaOmni:
    return LlamaOmni.from_pretrained(run / "omni")


def test_it_learns_to_speak_and_the_log_says_so(run) -> None:
    reports = [json.loads(line) for line in (run / "omni/log.jsonl").read_text().splitlines()]
    first, last = (report for report in reports if "dev_unit_error" in report)
    assert last["dev_unit_loss"] < first["dev_unit_loss"] and last["dev_unit_error"] < 0.2
    assert last["dev_unit_accuracy"] > 0.8 and 0.8 < last["dev_length"] < 1.2
    facts = OmniFacts.load(run / "omni")
    assert facts.decoder == SHAPE and (run / "omni/samples/0.wav").exists()


def test_packed_documents_score_as_alone(run) -> None:
    start = OMNI_SYSTEM.open(omni_config(run, kind="speaking", decoder=SHAPE), attn_implementation="by_document")
    start.model.eval()
    blocks, _ = load_blocks(start, 4, quiet=True)

    def scored(some: PackedBlocks, indices: range) -> tuple[float, int]:
        batch = start.collator()([some[i] for i in indices])
        with torch.no_grad():
            return start.loss(start.model, batch, start.items(batch)).item(), int(start.items(batch))

    packed, count = scored(blocks, range(len(blocks)))
    answers = [lengths_of(blocks[i]["said_start"]) for i in range(len(blocks))]
    assert count == sum(map(len, answers)) + sum(len(blocks[i]["units"]) for i in range(len(blocks)))
    alone = [
        scored(PackedBlocks([(blocks.sources[source], np.array([document]), 1.0)], 96, None, 0, 0), range(1))
        for i in range(len(blocks))
        for source, document in blocks.documents_of(i)
    ]
    assert packed == pytest.approx(np.average([loss for loss, _ in alone], weights=[n for _, n in alone]), abs=1e-5)


@pytest.mark.parametrize("omega", [1, 4, 10, 1000])
def test_a_stream_joined_is_the_answer(run, model, omega: int, monkeypatch) -> None:
    monkeypatch.setattr(model, "omega", omega)
    wav = run / "wav/t1.wav"
    pieces, whole = list(model.stream(wav, SHORT)), model.answer(wav, SHORT)
    last = pieces[-1].answer
    assert last is not None and whole.units and last.units == whole.units
    joined = np.concatenate([piece.wav for piece in pieces if piece.wav is not None])
    np.testing.assert_allclose(joined, whole.wav, atol=1e-4)


def test_a_batch_answers_as_each_alone(run, model) -> None:
    wavs = [run / f"wav/t{i}.wav" for i in range(4)]
    for one, wav in zip(model.answer_batch(wavs, SHORT), wavs, strict=True):
        assert one.units == model.answer(wav, SHORT).units
    assert model.say("red cat").units


def test_a_stage_may_continue_another(run) -> None:
    again = omni_config(
        run,
        model="omni",
        out="again",
        kind="speaking",
        decoder=SHAPE,
        training={"max_steps": 1, "learning_rate": 1e-12},
    )
    folder = train(again, system=OMNI_SYSTEM)
    for name, weight in load_file(folder / DECODER_FILE).items():
        torch.testing.assert_close(weight, load_file(run / "omni" / DECODER_FILE)[name])
    with pytest.raises(ValueError, match="Give the same one"):
        OMNI_SYSTEM.open(dataclasses.replace(again, decoder=dataclasses.replace(SHAPE, write=6)))


def test_its_latency_is_measured(run, tmp_path, capsys) -> None:
    rows = [{"id": f"t{i}", "audio": str(run / f"wav/t{i}.wav"), "text": "red dog"} for i in range(2)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latency.main(run / "omni", tmp_path / "test.jsonl", tmp_path / "out", omegas="4", limit=2)
    printed = capsys.readouterr().out
    assert "ms for the first token" in printed and "all frames anew" not in printed


def test_costs_are_of_a_decoder_that_writes_until_the_last_word() -> None:
    decoder = decoder_of(read=1, write=2)
    decoder.output_proj.bias.data[decoder.end] = 1e4
    token = torch.randn(16)
    assert decoder.stream().read(token) == []
    with latency._endless(decoder):
        stream = decoder.stream()
        assert [len(stream.read(token)) for _ in range(20)] == [2] * 20
    assert decoder.stream().read(token) == [] and decoder.output_proj.bias[decoder.end] == 1e4


def test_the_published_code_cannot_open_it(run, tmp_path) -> None:
    with pytest.raises(ValueError, match="the decoder's kind is autoregressive, not ctc"):
        export(run / "omni", tmp_path / "exported")
