"""Runs: what stages leave behind, and a run as a network again."""
