"""New classifiers on fixed features: solvers, baselines, metrics and the saved head. Knows arrays only."""
