"""Weights, beheading, reattaching, engines. Knows networks, and nothing of files on disk but a weights file.

Import the module that is needed: ``identity`` and ``lookup`` import no PyTorch, so that a job that finds nothing to do
does not pay for it; ``weights``, ``surgery``, ``cut`` and ``frozen`` do.
"""
