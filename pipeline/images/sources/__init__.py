"""The sources, a file for each, as ``source`` says: each lists a named set of images and reads them again later.

What comes out of a library (``digits``, ``torchvision``) is written out as files once.
"""
