"""Measures anything that answers speech; one results file per task, and the report drawn from them."""
