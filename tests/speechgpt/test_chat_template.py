"""The files that servers read: a chat rendered by the template has Dialogue's ids, and a reply ends at `<eoa>`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_run import make_run, stage_config
from tiny_tokenizers import KINDS, widened_kind
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from speechgpt.chat_template import chat_template, generation_config
from speechgpt.dialogue import Dialogue, Message
from speechgpt.vocab import EOA
from stages.config import Lora, Source
from stages.train import train

PREFIX = "You 'are' an \"AI\" \U0001f600.\nAnswer."
# no tokenizer here has a word of a colon and the beginning of these texts
plain = st.text(st.sampled_from("aeiou \n.?;\u00e9\U0001f600"), max_size=12).map(lambda text: "what " + text)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp(kind)
    widened_kind(kind, folder)[0].save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def spelled(tokenizer: PreTrainedTokenizerBase, turns: list[str], prefix: str = "") -> list[int]:
    roles = ("user", "assistant")
    chat = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    template = chat_template(tokenizer, prefix)
    return tokenizer.apply_chat_template(chat, chat_template=template, add_generation_prompt=True)["input_ids"]


def meant(tokenizer: PreTrainedTokenizerBase, turns: list, prefix: str = "") -> list[int]:
    roles = ("human", "assistant")
    parts = [(turn,) if isinstance(turn, str) else turn for turn in turns]
    return Dialogue(tokenizer, prefix).prompt([Message(roles[i % 2], said) for i, said in enumerate(parts)])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(plain, min_size=3, max_size=3), prefix=st.sampled_from(["", PREFIX]))
@example(turns=["", "what;", " what \n"], prefix="")
@example(turns=["one", ";", ""], prefix=PREFIX)
def test_the_chat_template_gives_the_ids_of_training(tokenizer: PreTrainedTokenizerBase, turns, prefix: str) -> None:
    for length in (1, 3):
        assert spelled(tokenizer, turns[:length], prefix) == meant(tokenizer, turns[:length], prefix)


def test_units_spelled_in_a_chat_are_units(tokenizer: PreTrainedTokenizerBase) -> None:
    assert spelled(tokenizer, ["<sosp><3><7><eosp>"]) == meant(tokenizer, [((3, 7),)])
    assert spelled(tokenizer, ["what is<sosp><3><eosp>", "two"] + ["x"]) == meant(
        tokenizer, [("what is", (3,)), "two", "x"]
    )


def test_words_that_begin_with_a_colon_change_ids_but_not_the_text(tokenizer, kind: str) -> None:
    ids, expected = spelled(tokenizer, ["noon"]), meant(tokenizer, ["noon"])
    assert (ids == expected) == (kind in ("llama", "mistral", "gpt2"))
    assert tokenizer.decode(ids).replace(" ", "") == tokenizer.decode(expected).replace(" ", "")


def test_other_roles_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], chat_template=chat_template(tokenizer))


def test_the_generation_config_keeps_only_the_end_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer, model = widened_kind(kind, tmp_path)
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert saved.keys() <= {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "_from_model_config",
    }
    assert saved["eos_token_id"] == [tokenizer.convert_tokens_to_ids(EOA), tokenizer.eos_token_id]
    assert (
        generation_config(tokenizer).to_diff_dict()
        == GenerationConfig.from_pretrained(tmp_path / "model").to_diff_dict()
    )


PLAIN = """
import sys, json, importlib.util
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(importlib.util.find_spec(name) for name in ("speechgpt", "units", "stages", "instruct_data"))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "what is two"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
whole = model.generate(**ids, max_new_tokens=20)
print(json.dumps({"prompt": ids["input_ids"][0].tolist(), "whole": whole[0].tolist()}))
"""


def test_generate_of_transformers_stops_at_the_end_of_a_reply(tmp_path: Path) -> None:
    tokenizer, model = widened_kind("llama", tmp_path)
    prompt, word = meant(tokenizer, ["what is two"]), tokenizer.encode("a", add_special_tokens=False)[-1]
    end = tokenizer.convert_tokens_to_ids(EOA)
    with torch.no_grad():  # the head is made so that the reply is: a word, then <eoa>
        first, second = model.model(torch.tensor([[*prompt, word]])).last_hidden_state[0, -2:]
        model.lm_head.weight.zero_()
        model.lm_head.weight[word] = first - second * (first @ second) / (second @ second)
        model.lm_head.weight[end] = second - first * (first @ second) / (first @ first)
    folder = tmp_path / "model"
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    packages = {**os.environ, "PYTHONPATH": str(Path(transformers.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", PLAIN, str(folder)]  # -S: an editable install of this repository is not seen
    done = subprocess.run(command, cwd=tmp_path, env=packages, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"prompt": prompt, "whole": [*prompt, word, end]}


def test_every_stage_writes_the_files_for_servers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    start = {"repetition_penalty": 1.1, "do_sample": True, "top_k": 20}
    GenerationConfig(**start).save_pretrained(run / "text_llm")
    (run / "text_llm/chat_template.jinja").write_text("{{ messages[0]['content'] }}<|im_end|>")
    chat = {"widen": None, "data": [Source("data/chat.jsonl.gz")], "prefix": PREFIX, "training": {"max_steps": 1}}
    one = train(stage_config(run, prefix=PREFIX, training={"max_steps": 1}))
    GenerationConfig(**start).save_pretrained(one)  # as earlier releases wrote it
    (one / "chat_template.jinja").unlink()
    two = train(stage_config(run, stage="stage2", model="stage1", out="stage2", **chat))
    three = train(stage_config(run, stage="stage3", model="stage2", out="stage3", lora=Lora(r=2), **chat))
    for folder in (two, three):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ends = AutoModelForCausalLM.from_pretrained(folder).generation_config
        assert ends.to_diff_dict() == generation_config(tokenizer).to_diff_dict()
        assert tokenizer.chat_template == chat_template(tokenizer, PREFIX)
        turns = [{"role": "user", "content": "red dog"}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert ids == meant(tokenizer, ["red dog"], PREFIX)
