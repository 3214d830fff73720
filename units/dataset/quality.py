"""The `units-quality` command: what units cost, what they say about phones, and what they reveal of the speaker.

    units-quality units/dev
    units-quality units/dev --alignments textgrids/ --out quality.json
    units-quality units/dev --alignments textgrids/ --abx abx/
    units-quality units/dev --encoder runs/toy/unit_encoder
    units-quality units/dev --wav a.wav --picture a.png

`--alignments` is a table of id, start, end, label, or a folder of TextGrids. Without it no purity is reported, and
units are compared with speakers and transcripts, if the set has them. With --encoder the recordings are encoded again,
clean and perturbed: another vocal tract, another speed, noise, a room. The figures are computed in
`units/dataset/measures/figures.py`.
"""

from __future__ import annotations

from pathlib import Path

from units.dataset.quality_config import QualityConfig
from units.runtime.command import command


@command("units-quality", flat=True)
def main(units: Path, out: Path | None = None, config: QualityConfig = QualityConfig()) -> None:
    """Measure a unit set; with --wav and --picture, draw one utterance as well.

    Args:
        units: a unit set, made by units-extract
        out: a .json to write the figures to
        config: what is measured
    """
    from units.dataset.measures import figures as measures

    measures.run(units, out, config)


if __name__ == "__main__":
    main.cli()
