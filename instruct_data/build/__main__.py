"""`python -m instruct_data.build`: see instruct_data/build/sets.py."""

from jsonargparse import auto_cli

from instruct_data.build.sets import main

auto_cli(main, as_positional=False)
