"""Exact heads: the minimum of a convex objective, all penalties (and folds) side by side, certified in float64."""
