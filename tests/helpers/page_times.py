"""How long a token view takes in a browser, seen from the page's own clock."""

from __future__ import annotations

from typing import Any

_STARTED = """() => ({
  first_paint: performance.getEntriesByName("first-paint")[0].startTime / 1000,
  list_shown: performance.getEntriesByName("seqproc-tokens-ready")[0].startTime / 1000,
})"""

# From an action until its page of the list is there and the browser has painted it.
_UNTIL_SHOWN = """async (action) => {
  const list = document.getElementById("sp-list");
  const changed = new Promise((done) => {
    const observer = new MutationObserver(() => { observer.disconnect(); done(); });
    observer.observe(list, { childList: true });
  });
  const start = performance.now();
  if (action === "turn") document.getElementById("sp-next").click();
  else {
    const field = document.getElementById(action === "sort" ? "sp-sort" : "sp-search");
    field.value = action === "sort" ? "rb_entropy_mean" : "of apples because";
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  await changed;
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return (performance.now() - start) / 1000;
}"""


def start_times(view: Any) -> dict[str, float]:
    """Seconds from the navigation to the first paint, and to the first draws listed."""
    view.wait_for_selector("#sp-tokens[data-ready]")
    return dict(view.evaluate(_STARTED))


def action_time(view: Any, action: str) -> float:
    """Seconds from an action to the paint of what it lists.

    Args:
        view: playwright's page, which holds made-up draws.
        action: "turn" to the next page, "sort" by another column, or "search" for the first time;
            the last waits 0.15 s for further letters.
    """
    view.wait_for_timeout(400)  # as long as someone looks at a page, at the least
    return float(view.evaluate(_UNTIL_SHOWN, action))
