"""Stage two: heads from cached features. Nothing here is handed a test row."""
