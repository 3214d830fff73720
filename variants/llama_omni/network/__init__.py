"""The trained parts of LLaMA-Omni: adaptor and speech decoder, and the decoder's loss."""
