// Elements that stand for tokens: made, and coloured again when the statistic changes.

// The tokens of a draw from one to another, as elements. Those of the opened draw have labels.
class TokenRow {
  constructor(draw, special, { from = 0, to = draw.ids.length, labelled = false }) {
    this.draw = draw;
    this.from = from;
    this.labelled = labelled;
    this.spans = Array.from(draw.ids.subarray(from, to), (id, n) =>
      this.span(from + n, special.has(id)),
    );
  }

  // The element of a token.
  span(step, isSpecial) {
    const span = make("span", isSpecial ? "sp-token sp-special" : "sp-token");
    span.dataset.step = step;
    if (this.draw.pieces) putText(span, pieceOf(this.draw, step), true);
    else span.textContent = `⟨${this.draw.ids[step]}⟩`;
    if (this.labelled) {
      span.tabIndex = -1;
      span.role = "option";
      span.ariaSelected = "false";
    }
    return span;
  }

  // Gives each token the colour of its number, and its label.
  paint(statistic) {
    const values = statistic ? this.draw.columns.get(statistic.column) : null;
    const palette = statistic ? paletteOf(statistic) : null;
    this.spans.forEach((span, n) => {
      const value = values ? statistic.sign * values[this.from + n] : NaN;
      const colour = palette && colourOf(statistic, palette, value);
      span.style.backgroundColor = colour?.paper ?? "";
      span.style.color = colour?.ink ?? "";
      span.classList.toggle("sp-none", !colour);
      if (this.labelled) span.ariaLabel = this.label(this.from + n, statistic, values && value);
    });
  }

  // What a screen reader says of a token.
  label(step, statistic, value) {
    const text = this.draw.pieces ? oneLine(pieceOf(this.draw, step)) : `id ${this.draw.ids[step]}`;
    return statistic ? `${text}, ${statistic.label}: ${shown(value)}` : text;
  }
}

// The text of a token as it is shown.
function pieceOf(draw, step) {
  return draw.pieces[step] ?? "⟨…⟩";
}

// A list of names and values, such as a token's numbers.
function pairs(entries, className) {
  const list = make("dl", className);
  for (const { name, value, title } of entries) {
    const term = make("dt", "", name);
    if (title) term.title = title;
    const entry = make("div");
    const text = make("dd");
    putText(text, value, false);
    entry.append(term, text);
    list.append(entry);
  }
  return list;
}

// The card with all numbers of the token under the pointer, or that has the focus.
class Card {
  constructor(element, columns) {
    this.element = element;
    this.columns = columns;
    document.addEventListener("keydown", ({ key }) => key === "Escape" && this.hide());
  }

  // Shows the numbers of a token beside its element.
  show(draw, step, span) {
    const numbers = this.columns.map(({ name, unit }) => {
      const value = draw.columns.get(name)?.[step];
      return { name, value: shown(value), title: unit };
    });
    const text = draw.pieces ? draw.pieces[step] : undefined;
    const about = [
      { name: "token", value: text === undefined ? "—" : oneLine(text ?? "⟨…⟩") || "⟨empty⟩" },
      { name: "step, from 0", value: String(step) },
      { name: "token id", value: String(draw.ids[step]) },
    ];
    this.element.replaceChildren(pairs([...about, ...numbers], "sp-numbers"));
    this.element.hidden = false;
    this.span = span;
    this.place();
  }

  // Below the token, or above it where there is no room.
  place() {
    if (this.element.hidden) return;
    const rectangle = this.span.getBoundingClientRect();
    const { offsetWidth, offsetHeight, style } = this.element;
    const below = rectangle.bottom + 6;
    const fits = below + offsetHeight < innerHeight;
    style.top = `${fits ? below : Math.max(0, rectangle.top - offsetHeight - 6)}px`;
    style.left = `${Math.max(0, Math.min(rectangle.left, innerWidth - offsetWidth - 8))}px`;
  }

  hide() {
    this.element.hidden = true;
  }
}

// Draws the scale of a statistic, with its numbers.
function drawLegend(element, statistic) {
  element.replaceChildren();
  if (!statistic) return;
  const palette = paletteOf(statistic);
  const bar = make("span", "sp-bar");
  for (const { paper } of palette) bar.append(make("span"));
  palette.forEach(({ paper }, n) => (bar.children[n].style.backgroundColor = paper));
  const middle = (statistic.low + statistic.high) / 2;
  const ends = make("span", "sp-ends");
  const short = (value) => shown(Number(value.toPrecision(3)));
  for (const text of [`≤ ${short(statistic.low)}`, short(middle), `≥ ${short(statistic.high)}`]) {
    ends.append(make("span", "", text));
  }
  const scale = make("span", "sp-scale");
  scale.append(bar, ends);
  const outside = make("span", "sp-key", statistic.diverging ? "±∞" : "−∞");
  outside.style.backgroundColor = OUTSIDE.paper;
  outside.style.color = OUTSIDE.ink;
  element.append(make("span", "", statistic.label), scale, outside);
  element.append(make("span", "sp-key sp-none", "no number"));
}
