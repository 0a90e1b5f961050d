"""How figures look: tables that more than one stage shows, traces in words, values on a terminal or as pictures.

Knows the values of ``pipeline.base.values``; nothing of images, networks, or files of features. Nothing is imported
here, so that a silent :class:`pipeline.base.watch.Watch` costs no terminal library.
"""
