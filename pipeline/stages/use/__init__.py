"""A run for other people: predictions, exports, and the traces that show how it works."""
