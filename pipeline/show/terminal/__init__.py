"""Values and words on a terminal, or as plain lines where there is none. Rich is imported in this room alone."""
