"""What a person sees: lines, progress, traces, curves and tables made from plain numbers.

Knows numbers, strings and arrays of counts; nothing of images, networks, or files of features. Nothing is imported
here, so that a silent :class:`pipeline.base.watch.Watch` costs no terminal library.
"""
