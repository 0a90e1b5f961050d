"""The command line: the only room that parses, prints and exits; it knows doors, never work."""
