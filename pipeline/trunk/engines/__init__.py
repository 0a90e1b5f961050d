"""What runs a trunk on pixels: one file an engine, what they share, how one is opened, and the check of it."""
