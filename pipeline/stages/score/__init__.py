"""Scoring: a run on the test split, once, and counted; two on the same rows. The only stage that reads test rows."""
