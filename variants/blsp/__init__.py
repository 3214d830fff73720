"""BLSP: a frozen text LLM learns to listen from its own continuations. Text comes out.

Source: Wang et al. 2023, "BLSP: Bootstrapping Language-Speech Pre-training via Behavior Alignment of Continuation
Writing" (arXiv 2309.00916), and the code at github.com/cwang621/blsp.
"""
