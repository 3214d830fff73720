"""Measure any model that answers speech: one results file per task (eval.run), and a report (eval.report.card)."""
