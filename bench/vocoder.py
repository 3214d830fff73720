"""Measure how fast units become audio at the published vocoder's size, beside the same network as it is usually run.

    python -m bench.vocoder --channels 64 --rounds 1 --seconds 2     # a few seconds: a quick run
    python -m bench.vocoder                                          # about five minutes on two cores
    python -m bench.vocoder --device cuda

The baseline is fairseq's own CodeHiFiGAN where fairseq is installed, else the same network with its weight norm left
on; one utterance at a time, as upstream runs it. All ways decode the same units with random weights, in turns: a
round is one pass of each, and a figure is the median over rounds. Prints seconds of audio per second of work.
"""

from __future__ import annotations

from bench.options import VocoderOptions
from units.runtime.command import command


@command("python -m bench.vocoder", flat=True)
def main(options: VocoderOptions = VocoderOptions()) -> None:
    """Time every way of turning units into audio.

    Args:
        options: what is decoded, and what is written
    """
    import json

    from bench.timing.vocoder import compare
    from units.runtime.files.atomic import written_whole
    from units.runtime.provenance import commit, machine

    figures = compare(options)
    if options.out:
        facts = {
            "machine": machine(options.device),
            "commit": commit(),
            "device": options.device,
            "threads": options.threads,
            "rounds": options.rounds,
        }
        with written_whole(options.out) as file:
            json.dump(facts | {"figures": figures}, file, indent=1)


if __name__ == "__main__":
    main.cli()
