"""Tests of an engine's draws: each tells what it found. Bets have a folder of their own."""
