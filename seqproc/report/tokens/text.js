// Texts of a model are not to be trusted: they reach the page as text alone, and what cannot be
// seen in them, or changes how what is around it is shown, is written out.

// Control and format characters (bidirectional marks among them), spaces, halves of surrogate
// pairs, what is not assigned, and letters that leave no mark.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\p{Z}\u115F\u1160\u3164\uFFA0\u2800]+/gu;
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\p{Zl}\p{Zp}\u115F\u1160\u3164\uFFA0\u2800]+/gu;
const MARKS = new Map([[" ", "·"], ["\n", "⏎\n"], ["\t", "⇥"], ["\r", "␍"]]);

// A character that cannot be seen, as it is shown.
function mark(letter) {
  return MARKS.get(letter) ?? `⟨U+${letter.codePointAt(0).toString(16).toUpperCase()}⟩`;
}

// Puts a text into an element, with marks in elements of their own. Spaces are marked on request.
function putText(element, text, spaces) {
  let end = 0;
  for (const found of text.matchAll(spaces ? HIDDEN : UNSEEN)) {
    if (found.index > end) element.append(text.slice(end, found.index));
    end = found.index + found[0].length;
    if (!spaces && /^[\n\t]+$/.test(found[0])) element.append(found[0]);
    else element.append(make("span", "sp-mark", Array.from(found[0], mark).join("")));
  }
  if (end < text.length) element.append(text.slice(end));
}

// A text on one line, with all marks, for labels.
function oneLine(text) {
  return text.replace(HIDDEN, (run) => Array.from(run, mark).join("").replaceAll("\n", ""));
}

// The first letters of a text, never half of a pair.
function beginning(text, length) {
  if (text.length <= length) return text;
  const last = text.charCodeAt(length - 1);
  const cut = last >= 0xd800 && last < 0xdc00 ? length - 1 : length;
  return `${text.slice(0, cut)}…`;
}

// A number as the page shows it: six significant digits, as in the run's rows.
function shown(value) {
  if (value === undefined || value === null) return "—";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return String(Number(value.toPrecision(6))).replaceAll("-", "−");
}

// An element with a class and a text.
function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
