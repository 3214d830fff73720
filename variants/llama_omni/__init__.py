"""LLaMA-Omni: a text LLM listens through an adaptor, and a second decoder turns its states into units as it writes.

Source: Fang et al. 2024, "LLaMA-Omni: Seamless Speech Interaction with Large Language Models" (arXiv 2409.06666), and
the code at github.com/ictnlp/LLaMA-Omni.
"""
