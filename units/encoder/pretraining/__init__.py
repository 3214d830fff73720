"""HuBERT pre-training: crops of a corpus, cluster targets, masked prediction. The command is units/encoder/pretrain.py."""
