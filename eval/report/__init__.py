"""The report of a run: figures, curves and audio as one HTML page and as Markdown."""
