"""Files that are written whole, and read with errors that name them."""
