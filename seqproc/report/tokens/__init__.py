"""The token view of a run's page: its sequences as text, coloured token by token."""
