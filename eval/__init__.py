"""Measures anything with answer(wav), task by task as far as it can; one results file per task, and the report drawn from them."""
