"""Stages of kind preference: losses are those of other implementations, however pairs are packed and cached; what
starts, resumes and ends as any other stage does."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import pairs
from tiny_run import CODEBOOK, FOREIGN, K, make_run, stage_config
from torch.nn import functional

from instruct_data.build.preference_sets import Pair, write_preferences
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Message
from speechgpt.generation.likelihood import Row, log_likelihoods
from speechgpt.inference import LEARNED
from stages.callbacks.log import read_log
from stages.config import Preference, Source, StageConfig
from stages.packing.blocks import PackedBlocks
from stages.packing.tokens import tokenise
from stages.train import train
from stages.unit_system.preference import PreferenceOpened, collate
from stages.unit_system.preference_loss import sft_loss
from stages.unit_system.system import UNIT_SYSTEM

STEPS = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with stage 1, and pairs."""
    run = make_run(tmp_path_factory.mktemp("preference"))
    train(stage_config(run, training={"max_steps": 20}))
    write_preferences(run / "pairs.jsonl.gz", pairs(), CODEBOOK)
    return run


def planned(run: Path, out: str = "stage4", **changes) -> StageConfig:
    fields = {
        "stage": "stage4",
        "model": "stage1",
        "widen": None,
        "data": [Source("pairs.jsonl.gz")],
        "block_size": 128,
    }
    training = {"max_steps": STEPS, "learning_rate": 2e-3, **changes.pop("training", {})}
    return stage_config(run, out=out, training=training, **{**fields, **changes})


def opened(run: Path, **changes) -> PreferenceOpened:
    found = UNIT_SYSTEM.open(planned(run, **changes), attn_implementation="by_document")
    assert isinstance(found, PreferenceOpened)
    found.model.config.use_cache = False
    return found


def batches(system: PreferenceOpened, alone: bool = False) -> list[dict]:
    """All pairs, each once: packed, two blocks a batch, or each pair alone."""
    tokens = tokenise(Source("pairs.jsonl.gz"), system, system.config.run / "cache")
    every = torch.arange(len(tokens)).numpy()
    if alone:
        singles = [PackedBlocks([(tokens, every[i : i + 1], 1.0)], 260, None, 0, 0)[0] for i in every]
        return [collate([block], False) for block in singles]
    blocks = PackedBlocks([(tokens, every, 1.0)], 400, None, 0, 0)
    return [collate([blocks[i] for i in some], False) for some in torch.arange(len(blocks)).split(2)]


def moved(system: PreferenceOpened) -> PreferenceOpened:
    """The same with other weights than the reference's."""
    with torch.no_grad():
        for weight in system.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.manual_seed(weight.numel()))
    return system


def total(system: PreferenceOpened, found: list[dict]) -> torch.Tensor:
    return sum(system.loss(system.model, batch, torch.tensor(1)) for batch in found)


@pytest.mark.parametrize(("loss", "each"), [("dpo", 0.693147), ("dpo_norm", 0.693147), ("ipo", 25.0)])
def test_before_it_learns_no_reply_is_likelier_than_in_the_reference(run, loss, each) -> None:
    system = opened(run, preference=Preference(loss))
    found = batches(system)
    assert sum(len(batch["reference"]) for batch in found) == 60
    assert total(system, found).item() / 60 == pytest.approx(each, rel=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "dpo_norm", "ipo"])
def test_packed_pairs_have_the_loss_and_gradient_of_single_ones(run, loss) -> None:
    system = opened(run, preference=Preference(loss, sft=0.3))
    packed, single = batches(system), batches(system, alone=True)
    system = moved(system)
    ours = total(system, packed)
    ours.backward()
    gradients = [weight.grad.clone() for weight in system.model.parameters()]
    system.model.zero_grad()
    dialogue = system.dialogue
    by_hand = []
    for pair in pairs():
        sides = [system._ids(pair, reply) for reply in (pair.chosen, pair.rejected)]
        start = next(i for i, (a, b) in enumerate(zip(*sides)) if a != b)
        assert dialogue.vocab.is_unit(torch.tensor([side[start] for side in sides])).all()
        scores = [log_likelihoods(system.model, [Row(side[:start], side[start:])])[0] for side in sides]
        by_hand.append([score.log_probability for score in scores])
    alone = torch.cat([system.likelihoods(system.model, batch)[0] for batch in single]).detach()
    assert sorted(alone.flatten().tolist()) == pytest.approx(sorted(sum(by_hand, [])), abs=1e-3)
    whole = total(system, single)
    whole.backward()
    assert ours.item() == pytest.approx(whole.item(), rel=1e-5)
    for weight, gradient in zip(system.model.parameters(), gradients):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item() + 1e-7)


def test_the_cached_reference_is_a_second_model(run) -> None:
    system = opened(run)
    found = batches(system)
    second = copy.deepcopy(system.model)
    moved(system)
    for batch in found:
        now, _, _ = system.likelihoods(system.model, batch)
        before, _, _ = system.likelihoods(second, batch)
        torch.testing.assert_close(batch["reference"], before.detach(), rtol=1e-5, atol=1e-4)
        assert not torch.allclose(now, before, atol=0.1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("dpo", ["sigmoid"]), ("dpo_norm", ["sigmoid_norm"]), ("ipo", ["ipo"]), ("sft", ["sigmoid", "sft"])],
)
def test_loss_and_gradient_are_those_of_trl(run, tmp_path, ours, theirs) -> None:
    """trl.DPOTrainer on the same tokens, with a reference model of its own; padded, a pair at a time."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    system = opened(run, preference=Preference(sft=1.0) if ours == "sft" else Preference(ours))
    found = batches(system, alone=True)[:6]
    reference = copy.deepcopy(system.model)
    moved(system)
    other = copy.deepcopy(system.model)
    weights = {"loss_weights": [1.0, 1.0]} if len(theirs) > 1 else {}
    arguments = trl.DPOConfig(
        str(tmp_path),
        loss_type=theirs,
        beta=0.1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
        **weights,
    )
    words = Dataset.from_list([{"prompt": "red", "chosen": " blue", "rejected": " green"}])
    trainer = trl.DPOTrainer(
        other, ref_model=reference, args=arguments, train_dataset=words, processing_class=system.tokenizer
    )
    for batch in found:
        assert len(batch["reference"]) == 1
        examples = []
        for side in (0, 1):
            inside = (batch["sides"][0] == side) & (torch.arange(batch["sides"].shape[1]) < _end(batch))
            ids, counted = batch["input_ids"][0][inside], batch["labels"][0][inside] != -100
            start = int(counted.int().argmax())
            examples.append((ids[:start].tolist(), ids[start:].tolist()))
        (prompt, chosen), (_, rejected) = examples
        inputs = DataCollatorForPreference(0)([{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}])
        system.model.zero_grad(), other.zero_grad()
        mine = system.loss(system.model, batch, torch.tensor(1))
        trls = trainer.compute_loss(other, inputs)
        assert mine.item() == pytest.approx(trls.item(), rel=1e-5)
        mine.backward(), trls.backward()
        for one, two in zip(system.model.parameters(), other.parameters()):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-5 * two.grad.abs().max().item() + 1e-8)


def _end(batch: dict) -> int:
    """Where the padding of a batch of one row begins: behind the last counted token, which is the last of the pair."""
    return int((batch["labels"][0] != -100).nonzero()[-1]) + 1


def test_a_stage_learns_what_is_preferred(run) -> None:
    config = planned(run, "learned", training={"max_steps": 60, "eval_steps": 60, "learning_rate": 1e-2})
    out = train(config)
    last = [record for record in read_log(out / "log.jsonl") if "dev_accuracy" in record][-1]
    assert last["dev_accuracy"] > 0.9 and last["dev_loss"] < 0.6 and last["dev_margin"] > 0.2
    assert last["dev_units"] > 0.8 and last["dev_kl"] > 0
    assert last["tasks"] and all({"accuracy", "units"} <= figures.keys() for figures in last["tasks"].values())
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert samples and {"task", "prompt", "reply", "chosen", "rejected"} <= samples[-1].keys()
    facts = CheckpointFacts.load(out)
    assert (facts.kind, facts.taught) == ("preference", "units")  # stage 1 taught no more than units
    assert LEARNED[facts.taught] == frozenset()


def test_resumed_it_ends_as_undisturbed(run) -> None:
    training = {"save_steps": 4, "eval_steps": STEPS, "lr_scheduler_type": "cosine", "save_total_limit": None}
    whole = train(planned(run, "whole", training=training))
    config = planned(run, "resumed", training=training)
    train(config)
    out = run / "resumed"
    for name in ("speechgpt.json", "model.safetensors", "config.json"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoint-8")
    for left in out.glob("checkpoint-10*"):
        shutil.rmtree(left)
    train(config)
    expected = load_file(whole / "model.safetensors")
    for name, weight in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def test_pairs_that_cannot_be_used_are_counted(run, capsys) -> None:
    asked = (Message("human", ((1, 2),)),)
    same = Pair(asked, Message("assistant", ("red cat", (1,))), Message("assistant", (" red cat", (1,))), id="same")
    long = Pair(asked, Message("assistant", ((1,) * 200,)), Message("assistant", ((2,) * 200,)), id="long")
    write_preferences(run / "odd.jsonl", [same, long, *pairs(3)], CODEBOOK)
    system = opened(run)
    documents = list(system.documents(Source("odd.jsonl"), run / "odd.jsonl"))
    assert [document.task for document in documents] == ["chain", "tts", "continuation"]
    assert "2 pairs left out: {'both replies have the same tokens': 1, 'longer than" in capsys.readouterr().out


def test_units_of_another_codebook_are_refused(run) -> None:
    write_preferences(run / "foreign.jsonl", pairs(3), FOREIGN)
    with pytest.raises(ValueError, match="foreign"):
        list(opened(run).documents(Source("foreign.jsonl"), run / "foreign.jsonl"))


def test_data_that_are_no_pairs_have_the_sft_term_alone(run) -> None:
    """Packed with pairs, which keep the loss that they have alone; by hand, from the model's own likelihoods."""
    sources = [Source("pairs.jsonl.gz"), Source("data/chat.jsonl.gz"), Source("units/train")]
    how = {"preference": Preference(sft=0.3), "data": sources}
    system = opened(run, **how)
    tokens = [tokenise(source, system, run / "cache") for source in sources]
    every = [(one, torch.arange(min(8, len(one))).numpy(), 1.0) for one in tokens]
    blocks = PackedBlocks(every, 400, None, 0, 0)
    packed = [collate([blocks[i] for i in some], False) for some in torch.arange(len(blocks)).split(2)]
    single = [PackedBlocks([(one, rows, 1.0)], 400, None, 0, 0) for one, rows, _ in every]
    by_source = [[collate([some[i]], False) for i in range(len(some))] for some in single]
    moved(system)
    assert sum(system.items(batch) for batch in packed) == sum(len(rows) for _, rows, _ in every) == 24
    by_hand = 0.0
    for one, rows, _ in every[1:]:
        for document in rows:
            ids, train = one.document(int(document))
            row = torch.from_numpy(ids.astype("int64"))
            logits = system.model(row[None]).logits[0, :-1].log_softmax(-1)
            each = logits.gather(1, row[1:, None])[:, 0]
            by_hand -= 0.3 * each[torch.from_numpy(train[1:].copy())].mean().item()
    others = sum(total(system, found).item() for found in by_source[1:])
    assert others == pytest.approx(by_hand, rel=1e-4)
    assert total(system, packed).item() == pytest.approx(total(system, by_source[0]).item() + others, rel=1e-5)
    total(system, packed).backward()
    assert all(weight.grad.isfinite().all() for weight in system.model.parameters())


def test_a_document_without_a_counted_token_has_no_loss() -> None:
    likelihoods = torch.zeros(2, 2, requires_grad=True)
    loss = sft_loss(Preference(sft=1.0), likelihoods, torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    loss.sum().backward()
    assert loss.tolist() == [0, 0] and likelihoods.grad.isfinite().all()


def test_a_stage_rehearses_conversations_beside_its_pairs(run) -> None:
    data = [Source("pairs.jsonl.gz"), Source("data/chat.jsonl.gz")]
    how = {"preference": Preference(sft=1.0), "samples": 8}
    config = planned(run, "rehearsed", data=data, training={"eval_steps": STEPS}, **how)
    out = train(config)
    last = [record for record in read_log(out / "log.jsonl") if "dev_accuracy" in record][-1]
    assert {"loss", "units"} <= last["tasks"]["sft_chat"].keys() and "accuracy" not in last["tasks"]["sft_chat"]
    assert {"loss", "accuracy", "margin", "kl"} <= last["tasks"]["chain"].keys()
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {sample["task"].startswith("sft_") for sample in samples} == {True, False}
    assert all(("rejected" in sample) != sample["task"].startswith("sft_") for sample in samples)


def test_data_that_are_no_pairs_need_the_sft_term(run) -> None:
    with pytest.raises(ValueError, match=r"chat\.jsonl\.gz holds no pairs of replies.*preference\.sft"):
        train(planned(run, "refused", data=[Source("data/chat.jsonl.gz")]))


def test_a_damaged_preference_set_is_named(run) -> None:
    (run / "damaged.jsonl").write_text('{"format": "preferences/9"}\n')
    with pytest.raises(ValueError, match=r"damaged\.jsonl:1: not the header of a preference set"):
        list(opened(run).documents(Source("damaged.jsonl"), run / "damaged.jsonl"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unit_noise": 0.1}, "unit_noise"),
        ({"reply_noise": 0.1}, "reply_noise"),
        ({"train_on_prompt": True}, "train_on_prompt"),
        ({"unit_loss_weight": 0.5}, "unit_loss_weight"),
        ({"kind": "chain", "preference": Preference()}, "kind: preference"),
    ],
)
def test_settings_that_do_not_go_together(run, changes, said) -> None:
    with pytest.raises(ValueError, match=said):
        planned(run, **changes)


@pytest.mark.parametrize("given", [{"loss": "kto"}, {"beta": 0}, {"sft": -1}, {"beta": float("nan")}])
def test_bad_settings_of_the_loss(given) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Preference(**given)


def test_a_preference_stage_has_no_widening(run) -> None:
    from stages.config import Widening

    with pytest.raises(ValueError, match="leave widen out"):
        UNIT_SYSTEM.open(planned(run, widen=Widening("unit_encoder")))


def test_positions_restart_at_each_reply(run) -> None:
    system = opened(run)
    batch = batches(system)[0]
    for row in range(len(batch["input_ids"])):
        positions, sides = batch["position_ids"][row], batch["sides"][row]
        begun = torch.nonzero(positions == 0).flatten().tolist()
        for place in range(1, len(positions)):
            if sides[place] != sides[place - 1]:
                assert place in begun and batch["labels"][row][place] == -100
    bos = system.tokenizer.bos_token_id
    assert all((batch["input_ids"][row][batch["position_ids"][row] == 0][:2] == bos).all() for row in range(2))
    assert functional.one_hot(batch["sides"].flatten()).sum(0).min() > 0 and K == 10
