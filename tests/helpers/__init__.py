"""What several tests share, and benchmarks too: models, oracles, broken engines. No tests."""
