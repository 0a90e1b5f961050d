"""The benchmarks behind `pipeline bench` and `make bench`.

Each entry measures ways of doing one thing against each other in one run, in turns, so that what else the machine does
meets all of them. A stage like the others: the rooms are used, none of them knows of it.
"""
