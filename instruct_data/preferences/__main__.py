"""`python -m instruct_data.preferences`: see instruct_data/preferences/pairs.py."""

from instruct_data.preferences.pairs import main

if __name__ == "__main__":
    main.cli()
