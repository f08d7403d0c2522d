// The list of draws, a page at a time.

const PAGE = 20; // draws
const PREVIEW_TOKENS = 120;
const PREVIEW_CHARACTERS = 600;

class List {
  constructor(element, view) {
    this.element = element;
    this.view = view;
    this.order = []; // rows, as filtered and sorted
    this.start = 0; // of the page, in the order
    this.groups = new Map(); // by row: TokenRow
    this.turn = 0; // counts pages, so that the last one asked for is the one shown
  }

  // The row that is opened, or null.
  get openRow() {
    return this.view.openRow;
  }

  // Shows the page that begins at a place in the order.
  async show(start) {
    this.start = start;
    this.turn += 1;
    const turn = this.turn;
    const rows = this.order.slice(start, start + PAGE);
    const draws = await this.unpacked(rows);
    if (turn !== this.turn) return;
    this.groups.clear();
    this.element.replaceChildren(...rows.map((row, n) => this.item(row, draws[n])));
    this.mark();
    this.view.onPage();
    this.prepare(start + PAGE);
    this.prepare(start - PAGE);
  }

  // The draws of rows; null for those in quarantine.
  unpacked(rows) {
    const { rows: all, chunks } = this.view;
    return Promise.all(rows.map((row) => (all.failed(row) ? null : chunks.draw(row))));
  }

  // Unpacks a page that may be asked for next.
  prepare(start) {
    const rows = this.order.slice(Math.max(start, 0), Math.max(start + PAGE, 0));
    setTimeout(() => this.unpacked(rows), 50);
  }

  // A draw: a button that opens it, and the beginning of its text.
  item(row, draw) {
    const item = make("li", "sp-draw");
    item.dataset.row = row;
    const button = make("button", "sp-head");
    button.type = "button";
    button.tabIndex = -1;
    putText(button, this.heading(row), false);
    item.append(button, draw ? this.preview(row, draw) : this.reason(row));
    return item;
  }

  // A draw in a line.
  heading(row) {
    const { rows } = this.view;
    const parts = [`Draw ${rows.value("draw", row)}`, rows.finish(row)];
    if (!rows.failed(row)) {
      parts.push(`${rows.value("gen_len", row)} tokens`);
      const named = { reward: "reward", sequence_logprob: "log p", rb_entropy_mean: "mean H" };
      for (const [name, words] of Object.entries(named)) {
        parts.push(`${words} ${rows.text(name, row)}`);
      }
    }
    const { sort } = this.view.query;
    const told = ["draw", "gen_len", "reward", "sequence_logprob", "rb_entropy_mean"];
    if (!told.includes(sort)) parts.push(`${sort} ${rows.text(sort, row)}`);
    return parts.join(" · ");
  }

  // The first tokens of a response.
  preview(row, draw) {
    const text = make("div", "sp-text sp-preview");
    if (!draw.pieces) putText(text, `${beginning(draw.response, PREVIEW_CHARACTERS)}\n`, false);
    const group = new TokenRow(draw, this.view.special, { to: PREVIEW_TOKENS });
    group.paint(this.view.statistic);
    this.groups.set(row, group);
    text.append(...group.spans);
    const left = draw.ids.length - PREVIEW_TOKENS;
    if (left > 0) text.append(make("span", "sp-muted", ` … ${left} more tokens`));
    return text;
  }

  // Why a draw is in quarantine.
  reason(row) {
    const { step, reason } = this.view.rows.failed(row);
    const text = make("div", "sp-text");
    putText(text, `${step}: ${reason}`, false);
    return text;
  }

  // Marks the opened draw, or else the first, as the one that Tab reaches.
  mark() {
    const items = [...this.element.children];
    const open = items.find((item) => Number(item.dataset.row) === this.openRow);
    for (const item of items) {
      item.firstChild.tabIndex = item === (open ?? items[0]) ? 0 : -1;
      if (item === open) item.firstChild.setAttribute("aria-current", "true");
      else item.firstChild.removeAttribute("aria-current");
    }
  }

  // Goes some places on from the opened draw, and to another page where it is there.
  async move(by) {
    const at = this.order.indexOf(this.openRow);
    const aim = at < 0 ? this.start : at + by;
    if (aim < 0 || aim >= this.order.length) return;
    await this.reveal(this.order[aim]);
    this.view.open(this.order[aim]);
    this.focus();
  }

  // Turns to the page that a row is on; false where it is not listed.
  async reveal(row) {
    const at = this.order.indexOf(row);
    if (at < 0) return false;
    const start = at - (at % PAGE);
    if (start !== this.start || !this.element.children.length) await this.show(start);
    return true;
  }

  // Turns some pages on.
  async turnBy(pages) {
    const start = this.start + pages * PAGE;
    if (start >= 0 && start < this.order.length) await this.show(start);
  }

  // Gives the keyboard to the draw that Tab reaches.
  focus() {
    this.element.querySelector('.sp-head[tabindex="0"]')?.focus();
  }

  paint() {
    for (const group of this.groups.values()) group.paint(this.view.statistic);
  }
}
