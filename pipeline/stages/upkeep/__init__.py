"""Looking after caches: what they hold, whether it is sound, copies and leaks, new labels."""
