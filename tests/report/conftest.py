"""The browser's fixtures, for the tests of this folder."""

from helpers.browser import browser, page

__all__ = ["browser", "page"]
