"""A second system (tests/tiny_system.py) uses all common code: training, packing, resume, plan, opening, talking."""

from __future__ import annotations

import ast
import json
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_run, stage_config
from tiny_system import ADAPTER, TinyOpened, TinySystem, TinyTalker, collate, write_spoken_set
from transformers import AutoModelForCausalLM, TrainerCallback

import eval.run
import speechgpt.cli
from speechgpt import open_model
from speechgpt.answers import NotSupported, SpeechModel
from stages import stage
from stages.config import Source, StageConfig
from stages.held_out import token_losses
from stages.packing.blocks import load_blocks
from stages.planning.cluster import Cluster
from stages.planning.plan import make_plan
from stages.train import train
from stages.trainable import choose_trainable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run folder with a text LLM and a set of spoken questions."""
    run = make_run(tmp_path_factory.mktemp("second"))
    write_spoken_set(run / "data")
    return run


def tiny_config(run: Path, **changes) -> StageConfig:
    training = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, **changes.pop("training", {})}
    fields = {"stage": "listening", "kind": "answer", "out": "tiny", "data": [Source("data/spoken.jsonl")]}
    changes = {**fields, "widen": None, "trainable": ["adapter"], "dev_documents": 3, **changes}
    return stage_config(run, training=training, **changes)


@pytest.fixture(scope="module")
def trained(run) -> tuple[Path, TinyOpened]:
    """The finished folder, and the system as it was opened."""
    system = TinySystem()
    return train(tiny_config(run), system=system), system.opened[0]


def test_only_the_adapter_learns(run, trained) -> None:
    folder, opened = trained
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    frozen = opened.model.llm.state_dict()
    assert start.keys() == frozen.keys()
    assert all(torch.equal(weight, frozen[name]) for name, weight in start.items())
    torch.manual_seed(0)
    fresh = TinySystem().open(tiny_config(run)).model.adapter
    adapter = load_file(folder / ADAPTER)
    assert adapter.keys() == {"adapter.weight", "adapter.bias"}
    assert all(not torch.equal(weight, fresh.state_dict()[name[8:]]) for name, weight in adapter.items())


def test_checkpoints_and_the_finished_folder_hold_the_adapter_alone(trained) -> None:
    folder, _ = trained
    assert load_file(folder / "checkpoint-4/model.safetensors").keys() == {"adapter.weight", "adapter.bias"}
    assert [path.name for path in folder.glob("*.safetensors")] == [ADAPTER]
    facts = json.loads((folder / "speechgpt.json").read_text())
    assert facts["system"] == "tiny" and facts["stage"] == "listening" and facts["config"]["kind"] == "answer"
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    held_out = [record for record in records if "dev_text_loss" in record]
    assert [record["step"] for record in held_out] == [2, 4]


class Kill(TrainerCallback):
    """A process that dies after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_killed_stage_resumes_to_the_same_weights(run, trained, monkeypatch) -> None:
    config = tiny_config(run, out="killed")
    usual = stage.StageTrainer
    with monkeypatch.context() as patch:
        patch.setattr(stage, "StageTrainer", lambda *a, callbacks, **k: usual(*a, callbacks=[*callbacks, Kill(3)], **k))
        with pytest.raises(KeyboardInterrupt):
            train(config, system=TinySystem())
    assert (run / "killed/checkpoint-2/complete.json").exists() and not (run / "killed/speechgpt.json").exists()
    folder = train(config, system=TinySystem())
    expected = load_file(trained[0] / ADAPTER)
    for name, weight in load_file(folder / ADAPTER).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def test_all_parts_may_learn(run) -> None:
    system = TinySystem()
    train(tiny_config(run, out="both", trainable=["adapter", "llm"], training={"max_steps": 2}), system=system)
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    moved = system.opened[0].model.llm.state_dict()
    assert not torch.equal(start["model.embed_tokens.weight"], moved["model.embed_tokens.weight"])


def test_a_part_that_does_not_exist_is_refused(run) -> None:
    with pytest.raises(ValueError, match="there is no part encoder; the parts are adapter, llm"):
        train(tiny_config(run, out="no", trainable=["encoder"]), system=TinySystem())


@pytest.mark.parametrize("attention", ["by_document", "sdpa", "eager"])
def test_packed_documents_score_as_alone(run, attention: str) -> None:
    config = tiny_config(run, block_size=96, attention=attention)
    opened = TinySystem().open(config, attn_implementation=attention)
    model = opened.model.eval()
    blocks, held_out = load_blocks(opened, 8, quiet=True)
    batch = opened.collator()([blocks[i] for i in range(len(blocks))])
    with torch.no_grad():
        packed = opened.loss(model, dict(batch), opened.items(batch)).item()
    one_by_one = []
    for i in range(len(blocks)):
        assert len(blocks.documents_of(i)) > 1
        for source, document in blocks.documents_of(i):
            one_by_one += losses_of(opened, blocks.sources[source], document)
    assert len(one_by_one) == int(opened.items(batch))
    assert packed == pytest.approx(sum(one_by_one) / len(one_by_one), abs=1e-5)


@torch.no_grad()
def losses_of(opened: TinyOpened, tokenised, document: int) -> list[float]:
    """Losses of the counted tokens of one document, alone in a batch."""
    ids, train = tokenised.document(document)
    mel, place = (torch.from_numpy(tokenised.column(name, document).copy()) for name in ("mel", "place"))
    assert len(mel) == len(place)
    scores = opened.model(torch.from_numpy(ids.astype("int64"))[None], mel=mel, place=place).logits[0].log_softmax(-1)
    return [-scores[i - 1, token].item() for i, token in enumerate(ids) if train[i] and i]


def test_a_block_read_again_and_a_batch_give_the_same_losses(run) -> None:
    opened = TinySystem().open(tiny_config(run))
    blocks, _ = load_blocks(opened, 3, quiet=True)
    model = opened.model.eval()
    one = [
        token_losses(model, blocks[i], lambda m, b: m(**without_labels(collate([b], False))).logits)[0] for i in (0, 1)
    ]
    both = collate([blocks[0], blocks[1]], as_row=False)
    with torch.no_grad():
        logits = model(**without_labels(both)).logits
    for row, losses in enumerate(one):
        labels = both["labels"][row, 1:]
        found = torch.nn.functional.cross_entropy(logits[row, :-1], labels, ignore_index=-100, reduction="none")
        torch.testing.assert_close(found[labels >= 0], losses, atol=1e-5, rtol=1e-5)


def without_labels(batch: dict) -> dict:
    return {name: column for name, column in batch.items() if name != "labels"}


def test_text_that_a_user_types_is_never_a_place_for_speech(run) -> None:
    opened = TinySystem().open(tiny_config(run))
    blocks, _ = load_blocks(opened, 4, quiet=True)
    for i in range(len(blocks)):
        block = blocks[i]
        place = block["place"] + block["place_start"]
        assert len(set(place.tolist())) == len(place) == len(block["mel"])
        assert (block["labels"][place] == -100).all()
        assert (block["input_ids"][place] == opened.tokenizer.eos_token_id).all()


def test_documents_with_speech_cannot_be_cut(run) -> None:
    config = tiny_config(run, block_size=24, too_long="cut")
    opened = TinySystem().open(config)
    with pytest.raises(ValueError, match="documents with speech, or of two replies, cannot be cut"):
        load_blocks(opened, 2)


def test_another_recording_is_another_cache(run, tmp_path) -> None:
    path = write_spoken_set(tmp_path / "data")
    opened = TinySystem().open(tiny_config(run, data=[Source(str(path))]))
    first = load_blocks(opened, 1, quiet=True)[0].sources[0].columns["mel"].values.copy()
    (tmp_path / "data/wav/t1.wav").write_bytes((tmp_path / "data/wav/t2.wav").read_bytes())
    second = load_blocks(opened, 1, quiet=True)[0].sources[0].columns["mel"].values
    assert first.shape != second.shape or (first != second).any()


def test_the_plan_counts_its_parts(run) -> None:
    config, system = tiny_config(run), TinySystem()
    size = system.size(config, None)
    model = choose_trainable(system.open(config).model, config, TinyOpened.parts)
    assert size.parameters == model.num_parameters()
    assert size.learning == size.updated == sum(p.numel() for p in model.parameters() if p.requires_grad) == 9 * 32
    assert make_plan(config, size, Cluster(1, "16G")).fits


def test_no_common_code_names_it() -> None:
    found = subprocess.run(
        ["git", "grep", "-liE", r"tiny_system|tiny_speech|TinySystem|\"tiny\"", "--", "*.py", ":!tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""


# --- opened, asked and measured by code that does not name it


@pytest.fixture
def installed(monkeypatch) -> None:
    """The tiny system, as if a package with its entry point were installed."""
    entry = EntryPoint(TinySystem.name, "tiny_system:TinyTalker", open_model.GROUP)
    monkeypatch.setattr(open_model, "entry_points", lambda group: [entry] if group == open_model.GROUP else [])


def test_a_folder_names_its_system(trained) -> None:
    with pytest.raises(open_model.UnknownSystem, match="'tiny'"):  # its package is not installed here
        open_model.open_model(trained[0])


def test_it_opens_and_answers(run, trained, installed) -> None:
    model = open_model.open_model(trained[0], "cpu")
    assert isinstance(model, TinyTalker) and isinstance(model, SpeechModel)
    answer = model.answer(run / "data/wav/t1.wav")
    assert answer.text and answer.transcript is None and answer.wav is None
    assert "".join(piece.text for piece in model.stream(run / "data/wav/t1.wav")) == answer.text
    with pytest.raises(NotSupported) as refused:
        model.say("red")
    assert refused.value.capability == "say"


def test_it_answers_on_the_command_line(run, trained, installed, capsys) -> None:
    question = run / "data/wav/t1.wav"
    speechgpt.cli.main(str(trained[0]), ask=question, json=True, device="cpu")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["answer"] == open_model.open_model(trained[0], "cpu").answer(question).text
    assert found["transcript"] is None and found["wav"] is None and found["units"] is None


def test_it_is_measured(run, trained, installed, capsys) -> None:
    manifest = run / "data/test.jsonl"
    rows = [{"id": f"t{i}", "audio": f"wav/t{i}.wav", "text": f"tone {i}"} for i in (1, 2, 3)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    eval.run.main(str(trained[0]), manifest, run / "results", tasks="asr,tts")
    result = json.loads((run / "results/asr.json").read_text())
    assert result["n"] == 3 and result["model"].startswith("tiny")
    assert not (run / "results/tts.json").exists()
    assert "tts" in capsys.readouterr().out  # skipped, with the reason


SPEECHGPT_ALONE = ("stages.unit_system", "speechgpt.vocab", "speechgpt.dialogue", "units.codebook", "instruct_data")


def test_common_code_of_the_trainer_imports_no_system() -> None:
    wrong = []
    for path in sorted((ROOT / "stages").rglob("*.py")):
        common = path.parent.name != "unit_system" and path.name != "train.py"  # its default system is SpeechGPT
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if common else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(SPEECHGPT_ALONE):
                wrong.append(f"{path.name}: {node.module}")
    assert wrong == []
