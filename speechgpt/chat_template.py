"""What a checkpoint tells the programs that serve it without this package: where a reply ends, and how a chat is spelled.

They read `generation_config.json` and `chat_template.jinja`; those of the text LLM would run on past `<eoa>`, and spell chats
as no stage has seen them. A chat that is spelled and then read by the tokenizer has the ids of `Dialogue.prompt`, but for this:

- In what is typed, markers are markers: that is how units are sent (`<sosp><3><7><eosp>`, no space beside it). Programs that
  serve strangers must strip them.
- A tokenizer with words that begin with a colon (`:D`) may read one where Dialogue has a colon and a text; nothing could be
  spelled between the two that has no token. Bytes in the manner of Llama 3 and Qwen have such words, sentencepiece has not.
"""

from __future__ import annotations

import json

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from speechgpt.dialogue import Dialogue
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT
from units.notation import SOSP


def prepare_for_serving(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prefix: str = "") -> None:
    """Give a widened tokenizer and its model, in place, the chat template and the generation config that are saved with them.

    prefix: the system text of the template, as Dialogue's.
    """
    tokenizer.chat_template = chat_template(tokenizer, prefix)
    model.generation_config = generation_config(tokenizer)


def generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Where replies end, and nothing else: a text LLM's own, such as a repetition penalty, would fall on units."""
    end = tokenizer.convert_tokens_to_ids(EOA)
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ends = [end] if tokenizer.eos_token_id is None else [end, tokenizer.eos_token_id]
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=pad)


def chat_template(tokenizer: PreTrainedTokenizerBase, prefix: str = "") -> str:
    """The template of Dialogue for text turns, in jinja, with spaces where this tokenizer needs them to give the same ids."""
    lead, join = _spaces(tokenizer)
    start = (tokenizer.bos_token or "") + (lead if tokenizer.bos_token and prefix.strip() else "") + prefix.strip()
    join = f"{{{{ '' if text == '' or text.startswith('{SOSP}') else '{join}' }}}}" if join else ""
    said = f"{lead}:{join}{{{{ text }}}}"
    closed = f"{{{{ '{join and ' '};' if text.endswith(';') }}}}"  # parsing takes it away, as Dialogue says
    return (
        f"{{{{ {json.dumps(start, ensure_ascii=False)} }}}}"
        "{% for message in messages %}{% set text = message['content'] | trim %}"
        f"{{% if message['role'] == 'user' %}}{HUMAN}{said}{EOH}"
        f"{{% elif message['role'] == 'assistant' %}}{SPEECHGPT}{said}{closed}{EOA}"
        "{% else %}{{ raise_exception('roles are user and assistant; the system text of this model is built in') }}{% endif %}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{SPEECHGPT}{lead}:{{% endif %}}"
    )


def _spaces(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What stands between a marker and its colon, and between the colon and the text, so that ids come out as Dialogue's."""
    dialogue = Dialogue(tokenizer)

    def same(spelled: str, *parts: str) -> bool:
        meant = [token for part in parts for token in dialogue.encode_text(part)]
        return tokenizer.encode(HUMAN + spelled, add_special_tokens=False) == [dialogue.vocab.special_id(HUMAN), *meant]

    lead = next((space for space in ("", " ") if same(f"{space}:", ":")), "")
    join = next((space for space in ("", " ") if same(f"{lead}:{space}a", ":", "a")), "")
    return lead, join
