"""Open any model that talks: `open_model("runs/toy/model").answer("question.wav")`.

`speechgpt.json` in the model folder names a *system*: a way for speech to go into and out of a language model. The
class of a system is looked up among the entry points of the group `speechgpt.systems`, so any installed package can
bring one:

    entry_points={"speechgpt.systems": ["mine = my_package.inference:MyModel"]}

The class implements speechgpt.answers.SpeechModel and has `from_pretrained(folder, device, dtype)`.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from speechgpt.answers import SpeechModel
from speechgpt.checkpoint import CheckpointFacts
from units.runtime.hub import local_folder

GROUP = "speechgpt.systems"
BUILT_IN = {
    "speechgpt": "speechgpt.inference:SpeechGPT"
}  # found even where the installed metadata is older than the code


class UnknownSystem(ValueError):
    """A model folder names a system that no installed package provides, or whose package does not import."""


def open_model(
    folder: str | Path, device: str | None = None, dtype: str | None = None, llm: str | None = None
) -> SpeechModel:
    """Open a model folder of any installed system.

    Args:
        folder: a model folder, or the id of a model on the hub, such as `name/model`.
        device: such as `cpu` or `cuda:1`; None takes a GPU if there is one.
        dtype: of the weights: float32, bfloat16 or float16; None leaves the choice to the model.
        llm: URL of an inference engine that runs the LLM, for systems whose `from_pretrained` takes one.

    Raises:
        FileNotFoundError: there is no such model.
        UnknownSystem: no installed package provides the model's system.
        ValueError: the files of the model do not fit together, or its system takes no `llm`.
    """
    folder = local_folder(folder)
    name = CheckpointFacts.load(folder).system
    system = system_class(name)
    if llm is None:
        return system.from_pretrained(folder, device or _best_device(), dtype)
    if "llm" not in inspect.signature(system.from_pretrained).parameters:
        raise ValueError(f"a model of the system {name!r} draws its tokens itself; open it without llm")
    return system.from_pretrained(folder, device or _best_device(), dtype, llm=llm)


def system_class(system: str) -> Any:
    """The class of a system.

    Raises:
        UnknownSystem: no installed package provides it, or its module does not import.
    """
    installed = {name: EntryPoint(name, target, GROUP) for name, target in BUILT_IN.items()}
    installed |= {entry.name: entry for entry in entry_points(group=GROUP)}
    if system not in installed:
        raise UnknownSystem(
            f"this model is of the system {system!r}; installed: {', '.join(sorted(installed))}. "
            f"Install the package that provides it (an entry point {system!r} in the group {GROUP!r})"
        )
    module, _, name = installed[system].value.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownSystem(f"the system {system!r} ({module}:{name}) cannot be loaded: {error}") from error


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
