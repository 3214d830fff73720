"""Tasks on the sound of spoken answers: opinion scores, whose voice it is, and how fast it speaks."""
