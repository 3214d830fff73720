"""Networks that judge the sound of a spoken answer: its quality, and whose voice it is."""
