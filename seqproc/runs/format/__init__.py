"""What the files of a run hold: manifest, rows, quarantine, further scores, events.

Knows no engine, no scorer and no model, and needs no torch but to make rows.
"""
