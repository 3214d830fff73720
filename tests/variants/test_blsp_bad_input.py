"""Bad input of BLSP's stages: counted by reason, or told in one line, and the run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_blsp import blsp_config, make_blsp_run, tone

from instruct_data.build.records import write_conversations
from speechgpt.dialogue import Conversation, Message, Speech
from stages.config import Source
from stages.packing.blocks import load_blocks
from stages.train import train
from units.audio import SAMPLE_RATE, save_wav
from variants.blsp.data.labels import Label, write_labels
from variants.blsp.inference import BLSP
from variants.blsp.stages.system import BLSP_SYSTEM


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_blsp_run(tmp_path_factory.mktemp("bad"))


def label(id: str, wav: Path, response: str = "the red one", **fields) -> Label:
    return Label(id, Speech(str(wav)), response, **{"behaviour": "answer", "instruction": "", **fields})


def loaded(run: Path, labels: list[Label], tmp_path: Path, **changes) -> int:
    """How many documents a set of labels gives."""
    write_labels(tmp_path / "some.jsonl", labels)
    stated = blsp_config(run, data=[Source(str(tmp_path / "some.jsonl"))], dev_documents=0, **changes)
    blocks, _ = load_blocks(BLSP_SYSTEM.open(stated), 1, quiet=True)
    return len(blocks.sources[0])


def test_recordings_and_responses_that_cannot_be_learned_are_counted(run, tmp_path, capsys) -> None:
    good = run / "wav/t0.wav"
    save_wav(tmp_path / "silent.wav", np.zeros(SAMPLE_RATE, np.float32))
    (tmp_path / "text.wav").write_bytes(b"no audio")
    (tmp_path / "empty.wav").write_bytes(b"")
    save_wav(tmp_path / "short.wav", tone(300.0, 0.01))
    damaged = good.read_bytes()
    (tmp_path / "cut.wav").write_bytes(damaged[: len(damaged) // 2])
    labels = [label("good", good), label("lost", tmp_path / "nowhere.wav"), label("no words", good, "")]
    labels += [label("dots", good, "..."), label("emoji", good, "\U0001f600")]
    labels += [label(name, tmp_path / f"{name}.wav") for name in ("silent", "text", "empty", "short", "cut")]
    assert loaded(run, labels, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "9 refused" in printed
    assert all(count in printed for count in ("5 unreadable_audio", "1 silent_audio", "1 no_reply_text", "2 no_word"))


def test_half_a_chain_is_refused(run, tmp_path) -> None:
    heard = Message("human", (Speech(str(run / "wav/t0.wav")),))
    half = Conversation((heard, Message("assistant", ("the red one",), "transcript")), "chain_transcript", "c1")
    write_conversations(tmp_path / "chain_halves.jsonl", [half], None, 0)
    stated = blsp_config(run, data=[Source(str(tmp_path / "chain_halves.jsonl"))], dev_documents=0)
    with pytest.raises(ValueError, match="c1 is one half of a chain"):
        load_blocks(BLSP_SYSTEM.open(stated), 1, quiet=True)


def test_stereo_and_other_rates_are_read(run, tmp_path) -> None:
    import soundfile

    wav = tone(300.0, 0.5)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wav, wav], 1), SAMPLE_RATE)
    soundfile.write(tmp_path / "fast.flac", np.repeat(wav, 3), 3 * SAMPLE_RATE)
    labels = [label("a", tmp_path / "stereo.wav"), label("b", tmp_path / "fast.flac")]
    assert loaded(run, labels, tmp_path) == 2


def test_recordings_longer_than_a_block_are_counted(run, tmp_path, capsys) -> None:
    save_wav(tmp_path / "long.wav", tone(300.0, 20.0))
    labels = [label("a", run / "wav/t0.wav"), label("b", tmp_path / "long.wav")]
    write_labels(tmp_path / "some.jsonl", labels)
    stated = blsp_config(run, data=[Source(str(tmp_path / "some.jsonl"))], dev_documents=0)
    blocks, _ = load_blocks(BLSP_SYSTEM.open(stated), 2)
    assert "1 longer than a block (skip)" in capsys.readouterr().out
    assert {document for index in range(2) for _, document in blocks.documents_of(index)} == {0}


def test_labels_that_ask_in_other_words_than_the_config_are_told(run, tmp_path, capsys) -> None:
    labels = [label("a", run / "wav/t0.wav", behaviour="repeat", instruction="please say")]
    labels += [label("b", run / "wav/t1.wav", instruction="")]
    assert loaded(run, labels, tmp_path) == 2
    printed = capsys.readouterr().out
    assert "'please say'" in printed and "instructions.transcribe" in printed and "instructions.answer" not in printed
    (tmp_path / "again").mkdir()
    assert loaded(run, labels[:1], tmp_path / "again", instructions={"transcribe": "please say"}) == 1
    assert "did not learn" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "template", "told"), [("eos_token", "blsp", "eos_token"), ("chat_template", "chat", "another template")]
)
def test_tokenizers_that_lack_what_a_template_needs(run, missing: str, template: str, told: str) -> None:
    opened = BLSP_SYSTEM.open(blsp_config(run))
    setattr(opened.tokenizer, missing, None)
    from variants.blsp.template import open_template

    with pytest.raises(ValueError, match=told):
        open_template(template, opened.tokenizer)


def test_an_encoder_of_another_width_or_other_weights_is_refused(run, tmp_path) -> None:
    import json
    import shutil

    folder = train(blsp_config(run, out="whole", training={"max_steps": 1}), system=BLSP_SYSTEM)
    facts = json.loads((folder / "speechgpt.json").read_text())
    for name, change in (
        ("width", {"width": 95}),
        ("weights", {"encoder": {**facts["extra"]["encoder"], "fingerprint": "0" * 12}}),
    ):
        copy = run / name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoint-*"))
        (copy / "speechgpt.json").write_text(json.dumps({**facts, "extra": {**facts["extra"], **change}}))
        with pytest.raises(ValueError, match="95|0{12}"):
            BLSP.from_pretrained(copy).answer(run / "wav/t0.wav")
