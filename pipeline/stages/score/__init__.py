"""Scoring: a run on the test split, once; two runs on the same rows. The only stage that reads test rows."""
