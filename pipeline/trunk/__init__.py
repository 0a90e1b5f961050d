"""Weights, beheading, reattaching, engines. Knows networks, and nothing of files on disk but a weights file.

Import the module that is needed: ``known`` (names, identities, choices; never imports PyTorch unless a GPU may be
there), ``weights``, ``model``, ``engine``. This file imports none of them, so that a job that finds nothing to do pays
for none of them.
"""
