"""Tests by betting: evidence against an engine that counts at any time, and names its cause."""
