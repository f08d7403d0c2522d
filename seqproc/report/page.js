// Draws the figures of the page as they come into view, in the colours of the page's theme.
"use strict";

(() => {
  const root = document.documentElement;
  const config = { displayModeBar: false, responsive: true };
  const drawn = new Set();

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // What a layout takes from the theme; axes are those that the figure has.
  const themed = (layout) => {
    const changes = {
      paper_bgcolor: colour("--bg"),
      plot_bgcolor: colour("--bg"),
      "font.color": colour("--fg"),
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      changes[`${axis}.gridcolor`] = colour("--line");
      changes[`${axis}.linecolor`] = colour("--line");
      changes[`${axis}.zerolinecolor`] = colour("--line");
    }
    return changes;
  };

  const draw = async (place) => {
    if (drawn.has(place)) return;
    drawn.add(place);
    const { data, layout } = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    await Plotly.newPlot(place, data, layout, config);
    await Plotly.relayout(place, themed(layout));
    place.dataset.drawn = "";
  };

  const recolour = () => {
    for (const place of drawn) Plotly.relayout(place, themed(place.layout));
  };

  const isDark = () => {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };

  const label = (button) => {
    button.textContent = isDark() ? "Light colours" : "Dark colours";
  };

  const places = [...document.querySelectorAll("[data-figure]")];
  const watcher = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
    { rootMargin: "400px" },
  );
  places.forEach((place) => watcher.observe(place));
  addEventListener("beforeprint", () => places.forEach(draw));

  const button = document.getElementById("theme");
  button.hidden = false;
  label(button);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label(button);
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    label(button);
    recolour();
  });
})();
