"""The stages of LLaMA-Omni in the one trainer."""
