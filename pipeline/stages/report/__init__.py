"""A run told to other people: one HTML file of what it is, what it gets wrong, and how far it can be believed."""
