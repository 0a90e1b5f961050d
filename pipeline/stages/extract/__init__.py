"""Stage one: images -> frozen trunk -> feature cache."""
