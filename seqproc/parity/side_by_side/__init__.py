"""Two engines, or two models: where they part, and by how much."""
