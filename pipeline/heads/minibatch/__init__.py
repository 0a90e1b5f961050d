"""Minibatch heads: many at once by SGD or AdamW, each equal to its solo run; random spaces and successive halving."""
