"""Where a run is kept: files that appear whole, and one writer at a time.

Knows nothing of runs.
"""
