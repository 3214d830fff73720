"""Measures any model that answers speech: one results file per task (eval.run), and a report drawn from them (eval.report.card)."""
