"""A run dealt out to several processes or machines, and made one again."""
