"""HuBERT pre-training: crops, cluster targets, masked prediction. The command is units/encoder/pretrain.py."""
