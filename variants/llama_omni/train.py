"""Train a stage of LLaMA-Omni with the one trainer of all stages.

    python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage1.yaml --run runs/toy
    python -m variants.llama_omni.train variants/llama_omni/configs/8b/stage2.yaml --plan --gpus 4 --gpu L40S-48G
    torchrun --nproc_per_node 4 -m -- variants.llama_omni.train variants/llama_omni/configs/8b/stage1.yaml

This file is light, so that `--help` is quick.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from stages import train as trainer
from variants.llama_omni.config import OmniConfig

if TYPE_CHECKING:
    from stages.system import System

NAME = "llama-omni-train"


def _omni() -> System:
    from variants.llama_omni.stages.system import OMNI_SYSTEM

    return OMNI_SYSTEM


main = functools.partial(trainer.main, name=NAME, kind=OmniConfig, system=_omni)
cli = functools.partial(trainer.cli, name=NAME, kind=OmniConfig, system=_omni)
main.cli = cli  # type: ignore[attr-defined]  # as units.runtime.command gives every command

if __name__ == "__main__":
    main.cli()  # type: ignore[attr-defined]
