// Which draws are listed, and in which order. Rows in quarantine come behind the others: they have
// a number of a draw and of a prompt, and a reason, but no response.

const QUARANTINED = "quarantined";
const UNKNOWN = "unknown";

// A condition on a reward: `0.5`, `= 0.5`, `> 0`, `>= 0`, `< 1`, `<= 1` or `0..1`. Null: no
// condition. Throws on anything else.
function rewardTest(text) {
  const plain = text.trim().replaceAll("−", "-").replaceAll("≥", ">=").replaceAll("≤", "<=");
  if (!plain) return null;
  const number = "([-+]?(?:\\d+\\.?\\d*|\\.\\d+)(?:[eE][-+]?\\d+)?)";
  const range = plain.match(new RegExp(`^${number}\\s*\\.\\.\\s*${number}$`));
  if (range) return (reward) => reward >= Number(range[1]) && reward <= Number(range[2]);
  const one = plain.match(new RegExp(`^(>=|<=|>|<|=|)\\s*${number}$`));
  if (!one) throw new SyntaxError("not a condition on a number");
  const bound = Number(one[2]);
  const same = shown(bound); // to the digits that are shown
  return {
    ">=": (reward) => reward >= bound,
    "<=": (reward) => reward <= bound,
    ">": (reward) => reward > bound,
    "<": (reward) => reward < bound,
    "=": (reward) => shown(reward) === same,
    "": (reward) => shown(reward) === same,
  }[one[1]];
}

// The rows of a run, by what is known of each draw.
class Rows {
  constructor({ header, arrays }, chunks) {
    this.header = header;
    this.columns = arrays;
    this.chunks = chunks;
    this.count = header.rows;
    this.places = new Map(); // of draws: their rows
    for (let row = 0; row < this.all; row += 1) this.places.set(this.value("draw", row), row);
    this.lowered = new Map(); // by chunk: texts to be searched
  }

  // Rows and draws in quarantine together.
  get all() {
    return this.count + this.header.quarantined.length;
  }

  // The record of a draw in quarantine; undefined for others.
  failed(row) {
    return this.header.quarantined[row - this.count];
  }

  // The number of a column that a row has; NaN where it has none.
  value(column, row) {
    if (row < this.count) return this.columns.get(column)?.[row] ?? NaN;
    return this.failed(row)[column] ?? NaN;
  }

  // The same as the page shows it: integers with all their digits.
  text(column, row) {
    const whole = this.header.columns.find(({ name }) => name === column)?.whole;
    const value = this.value(column, row);
    return whole && Number.isInteger(value) ? String(value) : shown(value);
  }

  // Why the response ended.
  finish(row) {
    return row < this.count ? (this.header.finish_reason[row] ?? UNKNOWN) : QUARANTINED;
  }

  // The kinds of endings that there are.
  endings() {
    const found = new Set();
    for (let row = 0; row < this.all; row += 1) found.add(this.finish(row));
    return [...found].sort();
  }

  // The rows that a query chooses, in its order. `isStale` stops a search that is not needed.
  async select({ text, finish, reward, sort, descending }, isStale) {
    const fits = text ? await this.search(text.toLowerCase(), isStale) : null;
    const chosen = [];
    for (let row = 0; row < this.all; row += 1) {
      if (finish && this.finish(row) !== finish) continue;
      if (reward && !reward(this.value("reward", row))) continue;
      if (fits && !fits.has(row)) continue;
      chosen.push(row);
    }
    return this.sorted(chosen, sort, descending);
  }

  // Rows in the order of a column, those without a number last, equal ones by draw.
  sorted(chosen, column, descending) {
    const sign = descending ? -1 : 1;
    const values = new Map(chosen.map((row) => [row, this.value(column, row)]));
    return chosen.sort((one, other) => {
      const [first, second] = [values.get(one), values.get(other)];
      const [lacks, lacked] = [Number.isNaN(first), Number.isNaN(second)];
      if (lacks !== lacked) return lacks ? 1 : -1;
      if (!lacks && first !== second) return first < second ? -sign : sign;
      return this.value("draw", one) - this.value("draw", other);
    });
  }

  // The rows whose prompt, response or reason of quarantine has a text in it, in small letters.
  async search(text, isStale) {
    const found = new Set();
    for (let chunk = 0; chunk < this.chunks.starts.length && !isStale(); chunk += 1) {
      const start = this.chunks.starts[chunk];
      (await this.textsOf(chunk)).forEach((texts, place) => {
        if (texts.some((one) => one.includes(text))) found.add(start + place);
      });
    }
    for (let row = this.count; row < this.all; row += 1) {
      if (this.failed(row).reason.toLowerCase().includes(text)) found.add(row);
    }
    return found;
  }

  // Prompts and responses of a chunk, in small letters.
  async textsOf(chunk) {
    if (!this.lowered.has(chunk)) {
      const { prompt, response } = await this.chunks.textsOf(chunk);
      const both = prompt.map((one, n) => [one.toLowerCase(), response[n].toLowerCase()]);
      this.lowered.set(chunk, both);
    }
    return this.lowered.get(chunk);
  }
}
