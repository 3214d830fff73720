"""The stages of BLSP as the trainer sees them."""
