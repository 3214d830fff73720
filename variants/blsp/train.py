"""Train a stage of BLSP with the one trainer of all stages.

    python -m variants.blsp.train variants/blsp/configs/toy/stage1.yaml --run runs/toy
    python -m variants.blsp.train variants/blsp/configs/7b/stage2.yaml --plan --gpus 8 --gpu A100-80G
    torchrun --nproc_per_node 8 -m -- variants.blsp.train variants/blsp/configs/7b/stage2.yaml

This file is light, so that `--help` is quick.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from stages import train as trainer
from variants.blsp.config import BlspConfig

if TYPE_CHECKING:
    from stages.system import System

NAME = "blsp-train"


def _blsp() -> System:
    from variants.blsp.stages.system import BLSP_SYSTEM

    return BLSP_SYSTEM


main = functools.partial(trainer.main, name=NAME, kind=BlspConfig, system=_blsp)
cli = functools.partial(trainer.cli, name=NAME, kind=BlspConfig, system=_blsp)
main.cli = cli  # type: ignore[attr-defined]  # as units.runtime.command gives every command

if __name__ == "__main__":
    main.cli()  # type: ignore[attr-defined]
