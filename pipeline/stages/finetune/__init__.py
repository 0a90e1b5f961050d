"""Stage three: the trained head back on its trunk, both trained end to end, and whether it was worth it."""
