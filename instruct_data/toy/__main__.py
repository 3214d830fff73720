"""`python -m instruct_data.toy`: see instruct_data/toy/world.py."""

from jsonargparse import auto_cli

from instruct_data.toy.world import main

auto_cli(main, as_positional=False)
