"""The sources: each lists a named set of images; what comes from memory or a library is written out as files once."""
