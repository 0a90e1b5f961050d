"""What logits are worth: metrics, their intervals, two classifiers side by side, calibration."""
