"""`python -m instruct_data.describe`: see instruct_data/describe/report.py."""

from instruct_data.describe.report import main

if __name__ == "__main__":
    main.cli()
