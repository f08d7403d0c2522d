// Colours of numbers. Lightness alone tells high from low on the sequential scale, which goes
// between yellow and blue; the diverging one goes from blue to orange, with the page's own
// lightness at 0. Both can be read by people who do not tell red from green. Text on a colour is
// black or white, whichever has more contrast: that is 4.58 at least, on any colour.

const STEPS = 64;

// OKLab to the channels of sRGB, 0 to 255 (Ottosson 2020, "A perceptual color space for image
// processing").
function toRgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((part) => {
    const inside = Math.min(Math.max(part, 0), 1);
    const curved = inside <= 0.0031308 ? 12.92 * inside : 1.055 * inside ** (1 / 2.4) - 0.055;
    return Math.round(curved * 255);
  });
}

// Relative luminance, as the WCAG define it.
function luminance(rgb) {
  const [r, g, b] = rgb.map((part) => {
    const value = part / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// A colour with the text that can be read on it.
function withInk(rgb) {
  const light = luminance(rgb);
  const ink = 1.05 / (light + 0.05) > (light + 0.05) / 0.05 ? "#fff" : "#000";
  return { paper: `rgb(${rgb.join(" ")})`, ink };
}

// Steps between points of OKLab.
function ramp(points) {
  return Array.from({ length: STEPS }, (_, step) => {
    const at = (step / (STEPS - 1)) * (points.length - 1);
    const first = Math.min(Math.floor(at), points.length - 2);
    const part = at - first;
    const mixed = points[first].map((from, n) => from + part * (points[first + 1][n] - from));
    return withInk(toRgb(mixed));
  });
}

const YELLOW = [0.96, -0.02, 0.09];
const GREY = [0.66, 0.0, 0.01];
const BLUE = [0.32, -0.01, -0.11];
const PALETTES = {
  light: {
    sequential: ramp([YELLOW, GREY, BLUE]),
    diverging: ramp([[0.5, -0.03, -0.16], [0.98, 0, 0], [0.62, 0.09, 0.13]]),
  },
  dark: {
    sequential: ramp([BLUE, GREY, YELLOW]),
    diverging: ramp([[0.72, -0.04, -0.13], [0.25, 0, 0], [0.78, 0.07, 0.14]]),
  },
};
const OUTSIDE = { paper: "rgb(176 0 32)", ink: "#fff" }; // of −∞: white on it has 7.3

// Which of them the page is in.
function theme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen === "light" || chosen === "dark") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// Calls a function when the page goes from light to dark or back.
function onTheme(change) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", change);
  const options = { attributes: true, attributeFilter: ["data-theme"] };
  new MutationObserver(change).observe(document.documentElement, options);
}

// The colours of a statistic's scale.
function paletteOf(statistic) {
  return PALETTES[theme()][statistic.diverging ? "diverging" : "sequential"];
}

// The colour of a value on a statistic's scale; null where there is none.
function colourOf(statistic, palette, value) {
  if (Number.isNaN(value)) return null;
  if (value === -Infinity || (statistic.diverging && value === Infinity)) return OUTSIDE;
  const part = (value - statistic.low) / (statistic.high - statistic.low);
  return palette[Math.round(Math.min(Math.max(part, 0), 1) * (STEPS - 1))];
}
