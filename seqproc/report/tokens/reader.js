// The opened draw: what is known of it, its prompt, and its tokens, which can be walked through.

const MOST_TOKENS = 2000; // that are shown at once; a button adds as many

class Reader {
  constructor(element, view) {
    this.element = element;
    this.view = view; // what it shares with the list
    this.groups = []; // TokenRows
    this.current = null; // the token that the keyboard is at
  }

  // Shows a row, once it is unpacked; a later call wins.
  async open(row) {
    this.row = row;
    const failed = this.view.rows.failed(row);
    const draw = failed ? null : await this.view.chunks.draw(row);
    if (row !== this.row) return;
    this.draw = draw;
    this.groups = [];
    this.current = null;
    const number = this.view.rows.value("draw", row);
    const title = make("h3", "", `Draw ${number}`);
    title.id = "sp-open-title";
    this.element.replaceChildren(title, this.link(number), this.facts(row));
    if (failed) this.element.append(make("p", "", "In quarantine: it has no response."));
    else this.element.append(this.prompt(draw), ...this.response(draw));
    this.element.hidden = false;
  }

  // A button that copies the address of the draw.
  link(number) {
    const button = make("button", "sp-copy", "Copy link");
    button.type = "button";
    button.addEventListener("click", async () => {
      const address = `${location.href.split("#")[0]}#draw=${number}`;
      try {
        await navigator.clipboard.writeText(address);
        this.view.tell(`The link to draw ${number} is in the clipboard.`);
      } catch {
        this.view.tell(`Not copied, the browser does not allow it. The link is ${address}`);
      }
    });
    return button;
  }

  // All that is known of a draw as a whole.
  facts(row) {
    const { rows } = this.view;
    const failed = rows.failed(row);
    const words = failed
      ? ["step", "reason", "seed", "time"].map((name) => [name, failed[name]])
      : [["finish_reason", rows.finish(row)], ["seed", rows.header.seed[row]]];
    const numbers = rows.header.columns
      .filter(({ name }) => !failed || name === "prompt_index")
      .map(({ name, unit }) => ({ name, title: unit, value: rows.text(name, row) }));
    const entries = words.map(([name, value]) => ({ name, value: value ?? "—" }));
    return pairs([...entries, ...numbers], "sp-facts");
  }

  // The prompt, folded; its text is put in when it is unfolded.
  prompt(draw) {
    const details = make("details", "sp-prompt");
    details.append(make("summary", "", `Prompt, ${draw.prompt.length} characters`));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(this.text(draw.prompt));
      this.view.promptsOpen = details.open;
    });
    details.open = this.view.promptsOpen;
    return details;
  }

  // A text as a whole.
  text(value) {
    const element = make("div", "sp-text");
    putText(element, value, false);
    return element;
  }

  // The response: its tokens, behind the text as a whole where they have no texts.
  response(draw) {
    const parts = [make("h4", "", `Response, ${draw.ids.length} tokens`)];
    if (!draw.pieces) {
      parts.push(make("p", "sp-muted", "The texts of single tokens are not known: ids are shown."));
      parts.push(this.text(draw.response));
    }
    this.box = make("div", "sp-text sp-tokens");
    this.box.role = "listbox";
    this.box.ariaLabel = `Tokens of draw ${this.view.rows.value("draw", draw.row)}`;
    parts.push(this.box);
    this.more = make("button", "");
    this.more.type = "button";
    this.more.addEventListener("click", () => this.extend());
    parts.push(this.more);
    this.extend();
    if (draw.answer !== null) {
      parts.push(make("h4", "", "Gold answer"), this.text(draw.answer));
    }
    return parts;
  }

  // Shows the next tokens.
  extend() {
    const from = this.spans().length;
    const to = Math.min(from + MOST_TOKENS, this.draw.ids.length);
    const group = new TokenRow(this.draw, this.view.special, { from, to, labelled: true });
    this.groups.push(group);
    group.paint(this.view.statistic);
    this.box.append(...group.spans);
    this.more.hidden = to === this.draw.ids.length;
    this.more.textContent = `Show more: ${this.draw.ids.length - to} tokens are left`;
    if (!this.current && group.spans.length) this.reach(group.spans[0]);
    this.box.hidden = !this.spans().length;
  }

  // The elements of all tokens that are shown.
  spans() {
    return this.groups.flatMap((group) => group.spans);
  }

  // Makes a token the one that Tab reaches.
  reach(span) {
    if (this.current) {
      this.current.tabIndex = -1;
      this.current.ariaSelected = "false";
      this.current.removeAttribute("aria-describedby");
    }
    span.tabIndex = 0;
    span.ariaSelected = "true";
    this.current = span;
  }

  // Goes to another token by the keyboard. Tells whether the key was one of those for it.
  key(key) {
    const spans = this.spans();
    const at = Number(this.current?.dataset.step ?? 0);
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10 };
    const aims = { ...steps, Home: 0, End: spans.length - 1 };
    if (!(key in aims) || !spans.length) return false;
    spans[Math.min(Math.max(aims[key], 0), spans.length - 1)].focus();
    return true;
  }

  paint() {
    for (const group of this.groups) group.paint(this.view.statistic);
  }
}
