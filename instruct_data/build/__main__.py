"""`python -m instruct_data.build`: see instruct_data/build/sets.py."""

from instruct_data.build.sets import main

if __name__ == "__main__":
    main.cli()
