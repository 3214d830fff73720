"""The start by CTC: an adapter learns to hear words, from transcripts and the LLM's embedding rows. No LLM runs.

Every system that listens has it as a kind of stage, and a command that writes down what is heard.
"""
