"""What every room stands on: errors, settings, words, files, the machine. Knows no image, network or head."""
