"""Speed, drift, size, memory and export time of this project's files beside those of other toolchains, on the same weights.

Run it with ``make bench``, or ``python -m benchmarks.peers --help`` in the environment of ``requirements.txt``. How it measures:
docs/methods/benchmark-peers.md.
"""
