"""The token view of a run's page: its sequences as text, coloured token by token."""

from seqproc.report.tokens.view import TokenView, token_view

__all__ = ["TokenView", "token_view"]
