"""Suites of spoken pairs that a language model over units is scored on: which of the two is more likely?"""
