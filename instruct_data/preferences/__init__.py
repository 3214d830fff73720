"""Pairs of spoken replies for a stage of kind preference: the model speaks several times, and what it or an evaluation
ASR understands is preferred."""
