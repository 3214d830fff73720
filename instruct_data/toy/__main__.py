"""Speak the toy world: `python -m instruct_data.toy --out runs/toy/corpus` (see instruct_data/toy/world.py)."""

from instruct_data.toy.world import main

main.cli()
