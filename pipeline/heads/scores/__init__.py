"""What logits are worth: metrics, bootstrap intervals, calibration."""
