// Joins the list, the opened draw and what chooses and colours them.

class TokenView {
  constructor(data) {
    this.data = data.header;
    this.chunks = new Chunks(this.data.starts);
    this.rows = new Rows(data, this.chunks);
    this.special = new Set(this.data.special);
    this.statistic = this.data.statistics[0] ?? null;
    this.openRow = null;
    this.promptsOpen = false;
    this.asked = 0; // counts queries, so that the last one is the one shown
    this.root = byId("tokens");
    this.query = { text: "", finish: "", reward: null, sort: "draw", descending: false };
    this.list = new List(byId("list"), this);
    this.reader = new Reader(byId("open"), this);
    this.card = new Card(byId("card"), this.data.token_columns);
  }

  // Fills the controls, listens, and shows the first page.
  async start() {
    this.fillControls();
    this.listen();
    this.repaint();
    this.note();
    await this.choose();
    await this.follow();
    this.root.dataset.ready = "true";
    performance.mark("seqproc-tokens-ready");
  }

  fillControls() {
    const options = (entries) => entries.map(([value, text]) => new Option(text, value));
    byId("statistic").append(
      ...options(this.data.statistics.map(({ name, label }) => [name, label])),
    );
    byId("sort").append(...options(this.data.columns.map(({ name }) => [name, name])));
    const endings = this.rows.endings().map((name) => [name, name]);
    byId("finish").append(...options([["", "all"], ...endings]));
  }

  // Says what is not there.
  note() {
    const { rows, run_rows: all, texts_of_tokens: cut, statistics } = this.data;
    const notes = [];
    if (rows < all) notes.push(`The first ${rows} of ${all} draws of the run are here.`);
    if (!cut) notes.push("The model's tokenizer was not at hand: tokens are shown by their ids.");
    if (!statistics.length) notes.push("The run keeps no number of single tokens.");
    byId("note").textContent = notes.join(" ");
  }

  listen() {
    const controls = byId("controls");
    let waiting = 0;
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.addEventListener("input", (event) => {
      clearTimeout(waiting);
      const typed = event.target.type === "search" || event.target.type === "text";
      if (event.target.id === "sp-statistic") this.repaint();
      else waiting = setTimeout(() => this.choose(), typed ? 150 : 0);
    });
    controls.addEventListener("reset", () => setTimeout(() => (this.repaint(), this.choose())));
    byId("next").addEventListener("click", () => this.list.turnBy(1));
    byId("previous").addEventListener("click", () => this.list.turnBy(-1));
    byId("keys-button").addEventListener("click", () => byId("keys").showModal());
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.listenToTokens();
    this.list.element.addEventListener("click", ({ target }) => {
      const item = target.closest(".sp-draw");
      if (item) this.open(Number(item.dataset.row));
    });
    addEventListener("hashchange", () => this.follow());
    onTheme(() => this.repaint());
  }

  // Pointer and focus on tokens show the card.
  listenToTokens() {
    this.root.addEventListener("pointerover", ({ target }) => this.point(target));
    this.root.addEventListener("pointerleave", () => this.card.hide());
    addEventListener("scroll", () => this.card.place(), { passive: true, capture: true });
    this.root.addEventListener("focusin", ({ target }) => {
      if (target.role === "option") {
        this.reader.reach(target);
        target.setAttribute("aria-describedby", "sp-card");
      }
      this.point(target);
    });
  }

  // Shows the card of the token that an element is in, or hides it.
  point(target) {
    const span = target.closest?.(".sp-token");
    if (!span) return this.card.hide();
    const row = Number(span.closest(".sp-draw")?.dataset.row ?? -1);
    const draw = row < 0 ? this.reader.draw : this.list.groups.get(row)?.draw;
    return draw && this.card.show(draw, Number(span.dataset.step), span);
  }

  // Keys of the list and of the opened draw; those of text fields are left alone.
  key(event) {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || target.closest("dialog")) return;
    if (target.matches("input, select")) return;
    const inList = this.list.element.contains(target);
    const inTokens = target.role === "option";
    const actions = {
      "?": () => byId("keys").showModal(),
      "/": () => byId("search").focus(),
      n: () => this.list.turnBy(1).then(() => inList && this.list.focus()),
      p: () => this.list.turnBy(-1).then(() => inList && this.list.focus()),
    };
    if (inList || inTokens) {
      actions.j = () => this.list.move(1);
      actions.k = () => this.list.move(-1);
    }
    if (inList) {
      actions.ArrowDown = actions.j;
      actions.ArrowUp = actions.k;
      actions.ArrowRight = () => this.reader.current?.focus();
    }
    if (inTokens) actions.Escape = () => this.list.focus();
    const isKnown = Object.hasOwn(actions, key);
    if (isKnown) actions[key]();
    if (isKnown || (inTokens && this.reader.key(key))) event.preventDefault();
  }

  // Reads the controls, and lists what they choose from its first page.
  async choose() {
    this.asked += 1;
    const asked = this.asked;
    const isStale = () => asked !== this.asked;
    const field = byId("reward");
    const query = {
      text: byId("search").value,
      finish: byId("finish").value,
      sort: byId("sort").value || "draw",
      descending: byId("descending").checked,
      reward: null,
    };
    field.ariaInvalid = "false";
    try {
      query.reward = rewardTest(field.value);
    } catch {
      field.ariaInvalid = "true";
    }
    const order = await this.rows.select(query, isStale);
    if (isStale()) return;
    this.query = query;
    this.list.order = order;
    await this.list.show(0);
  }

  // Tells where the list is.
  onPage() {
    const { order, start } = this.list;
    const end = Math.min(start + PAGE, order.length);
    byId("page").textContent = order.length
      ? `${start + 1} to ${end} of ${order.length} draws`
      : "No draw fits";
    byId("previous").disabled = start === 0;
    byId("next").disabled = end >= order.length;
    this.root.dataset.start = start;
  }

  // Opens a row, and puts its draw into the address.
  async open(row) {
    this.openRow = row;
    this.card.hide();
    this.list.mark();
    const number = this.rows.value("draw", row);
    if (this.asDraw() !== number) history.replaceState(null, "", `#draw=${number}`);
    await this.reader.open(row);
  }

  // The draw that the address names, or null.
  asDraw() {
    const found = location.hash.match(/^#draw=(\d+)$/);
    return found ? Number(found[1]) : null;
  }

  // Opens the draw that the address names.
  async follow() {
    const number = this.asDraw();
    if (number === null) return;
    const row = this.rows.places.get(number);
    if (row === undefined) {
      this.tell(`There is no draw ${number} here.`);
      return;
    }
    await this.list.reveal(row);
    await this.open(row);
    this.reader.element.scrollIntoView({ block: "nearest" });
  }

  // Colours everything by the statistic that is chosen.
  repaint() {
    const name = byId("statistic").value;
    this.statistic = this.data.statistics.find((one) => one.name === name) ?? null;
    drawLegend(byId("legend"), this.statistic);
    this.list.paint();
    this.reader.paint();
  }

  // Says something that a screen reader reads out as well.
  tell(text) {
    byId("status").textContent = text;
  }
}

// An element of the view.
function byId(name) {
  return document.getElementById(`sp-${name}`);
}

// Shows the view; says so where the browser lacks something or the page is not whole.
async function begin() {
  try {
    await new TokenView(await unpack("draws")).start();
  } catch (error) {
    byId("status").textContent = `The sequences cannot be shown here: ${error.message}`;
  }
}

if (document.readyState === "loading") addEventListener("DOMContentLoaded", begin);
else begin();
