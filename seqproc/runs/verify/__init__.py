"""Reads a run's folder again, every byte and every row, and says what is wrong with it."""
