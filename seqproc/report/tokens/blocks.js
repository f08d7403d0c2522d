// Reads the page's blocks of data: a header of JSON and arrays of numbers, unpacked when needed.

const ARRAYS = { f4: Float32Array, f8: Float64Array, u4: Uint32Array };
const MOST_CHUNKS = 60; // whose numbers are kept in memory

// The bytes of a block.
function bytesOf(name) {
  const text = document.getElementById(`seqproc-tokens-${name}`).textContent;
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// A block's header, and its arrays by name.
async function unpack(name) {
  const packed = new Blob([bytesOf(name)]).stream();
  const stream = packed.pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = new Map();
  let start = 4 + length;
  for (const { name: key, kind, count } of header.arrays) {
    const end = start + count * ARRAYS[kind].BYTES_PER_ELEMENT;
    arrays.set(key, new ARRAYS[kind](buffer.slice(start, end))); // little-endian, as machines are
    start = end;
  }
  return { header, arrays };
}

// The draws of a run, chunk by chunk.
class Chunks {
  constructor(starts) {
    this.starts = starts; // the first row of each chunk
    this.texts = new Map(); // promises, by the number of the chunk
    this.numbers = new Map(); // the same, the one used last behind the others
  }

  // The number of the chunk that a row is in.
  holding(row) {
    let low = 0;
    let high = this.starts.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= row) low = middle;
      else high = middle;
    }
    return low;
  }

  // The texts of a chunk.
  textsOf(chunk) {
    if (!this.texts.has(chunk)) {
      this.texts.set(chunk, unpack(`texts-${chunk}`).then(({ header }) => header));
    }
    return this.texts.get(chunk);
  }

  // The tokens of a chunk; forgets those of the chunk that was used longest ago.
  numbersOf(chunk) {
    const found = this.numbers.get(chunk) ?? unpack(`numbers-${chunk}`).then(withOffsets);
    this.numbers.delete(chunk);
    this.numbers.set(chunk, found);
    if (this.numbers.size > MOST_CHUNKS) this.numbers.delete(this.numbers.keys().next().value);
    return found;
  }

  // A draw: its texts, token ids, pieces of text and numbers of tokens.
  async draw(row) {
    const chunk = this.holding(row);
    const [texts, numbers] = await Promise.all([this.textsOf(chunk), this.numbersOf(chunk)]);
    const place = row - this.starts[chunk];
    const [start, end] = [numbers.offsets[place], numbers.offsets[place + 1]];
    const columns = new Map();
    for (const [name, values] of numbers.arrays) {
      const missing = numbers.missing.get(name)?.has(place);
      columns.set(name, missing ? null : values.subarray(start, end));
    }
    const { prompt, response, answer } = texts;
    return {
      row,
      prompt: prompt[place],
      response: response[place],
      answer: answer[place],
      pieces: numbers.header.pieces[place],
      ids: columns.get("response_ids"),
      columns,
    };
  }
}

// A chunk with where each of its draws begins, and which have nothing in a column.
function withOffsets({ header, arrays }) {
  const offsets = [0];
  for (const length of header.lengths) offsets.push(offsets.at(-1) + length);
  const missing = new Map();
  for (const [name, places] of Object.entries(header.missing)) missing.set(name, new Set(places));
  return { header, arrays, offsets, missing };
}
