"""What a language model writes itself: answers and texts that keep its own way of writing while it learns more."""
