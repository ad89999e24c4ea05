// The unstable route beside the fused one, in float32, and the margins at which it breaks.
import { byId, element, listenForNumbers, put, refill } from "./elements.js";
import { apart, firstBroken, fused } from "./float32.js";
import { plot } from "./plot.js";

const MOST = 120;
const STEP = 0.25;
const TARGET = 1;
const SMALLEST_NORMAL = 2 ** -126;
const LOST_DIGITS = 1e-6;

const rowOf = (margin) => [margin, 0];

const MARGINS = Array.from({ length: MOST / STEP + 1 }, (_, step) => step * STEP);

/** Return the points of a line over the margins, as far as it has any. */
const points = (route, height) =>
  MARGINS.map((margin) => [margin, height(route(rowOf(margin), TARGET))]).filter(([, value]) => Number.isFinite(value));

const formula = (letter) => [element("i", {}, letter), element("sub", {}, element("i", {}, "k"))];

const LINES = [
  ["loss", () => ["loss"]],
  ["probability", () => formula("q")],
  ["logarithmSlope", () => ["slope of the logarithm, −1 / ", ...formula("q")]],
  ["softmaxSlope", () => ["slope of softmax, ", ...formula("q"), " (1 − ", ...formula("q"), ")"]],
  ["gradient", () => ["gradient by ", ...formula("z")]],
];

export class Margin {
  #margin = 20;
  #cells = {};
  #firstNaN = firstBroken(({ gradient }) => Number.isNaN(gradient));
  #firstInfinite = firstBroken(({ loss }) => loss === Infinity);

  /** `onask(logits, target)` puts a row where the service computes it. */
  constructor(onask) {
    this.#buildTable();
    const slider = byId("margin");
    const number = byId("margin-number");
    slider.addEventListener("input", () => this.#set(Number(slider.value)));
    listenForNumbers(number, (value) => this.#set(Math.min(MOST, Math.max(0, value))), { step: 0.5 });
    byId("ask-margin").addEventListener("click", () => onask(rowOf(this.#margin), TARGET));
    new ResizeObserver(() => this.#drawPlots()).observe(byId("plots"));
    this.#draw();
  }

  #set(margin) {
    this.#margin = margin;
    this.#draw();
  }

  #buildTable() {
    const body = byId("routes").tBodies[0];
    for (const [name, label] of LINES) {
      const left = element("td", { "data-route": "apart", "data-name": name });
      const right = element("td", { "data-route": "fused", "data-name": name });
      this.#cells[name] = { left, right };
      body.append(element("tr", {}, element("th", { scope: "row" }, label()), left, right));
    }
  }

  #draw() {
    byId("margin").value = this.#margin;
    refill(byId("margin-number"), this.#margin);
    const broken = apart(rowOf(this.#margin), TARGET);
    const whole = fused(rowOf(this.#margin), TARGET);
    for (const [name, { left, right }] of Object.entries(this.#cells)) {
      put(left, broken[name], 6);
      left.classList.toggle("broken", !Number.isFinite(broken[name]));
      if (name in whole) put(right, whole[name], 6);
      else right.textContent = "not needed";
    }
    const words = verdict(broken, whole);
    if (byId("verdict").textContent !== words) byId("verdict").textContent = words;
    this.#drawPlots();
  }

  #drawPlots() {
    const [nan, infinite] = [this.#firstNaN, this.#firstInfinite];
    const here = this.#margin;
    const losses = points(apart, ({ loss }) => loss);
    losses.push([infinite, losses.at(-1)[1]], [infinite, MOST]);
    plot(byId("loss-plot"), {
      most: MOST,
      range: [0, MOST],
      heights: [40, 80, 120].map((loss) => [loss, loss]),
      xName: "margin",
      yName: "loss",
      zones: [infinite],
      titles: [`Infinity from ${infinite.toFixed(1)}`],
      lines: [
        { kind: "fused", points: points(fused, ({ loss }) => loss) },
        { kind: "apart", points: losses },
      ],
      here,
      dot: fused(rowOf(here), TARGET).loss,
      names: [
        { x: 48, y: 56, text: "fused", anchor: "end", kind: "name-fused" },
        { x: 53, y: 43, text: "softmax, then log", anchor: "start", kind: "name-apart" },
      ],
    });
    const size = (name) => points(apart, (route) => Math.log10(Math.abs(route[name])));
    plot(byId("slope-plot"), {
      most: MOST,
      range: [-48, 42],
      heights: [[38, "10³⁸"], [0, "1"], [-45, "10⁻⁴⁵"]],
      xName: "margin",
      yName: "slopes",
      zones: [nan],
      titles: [`product NaN from ${nan.toFixed(1)}`],
      lines: [
        { kind: "slope-logarithm", points: size("logarithmSlope") },
        { kind: "slope-softmax", points: size("softmaxSlope") },
        { kind: "slope-product", points: size("gradient") },
      ],
      here,
      names: [
        { x: 52, y: 27, text: "of the logarithm", anchor: "end", kind: "name-logarithm" },
        { x: 56, y: 3, text: "their product", anchor: "start", kind: "name-product" },
        { x: 52, y: -30, text: "of softmax", anchor: "end", kind: "name-softmax" },
      ],
    });
  }
}

/** Say what became of the route apart. */
function verdict({ loss, probability, gradient }, whole) {
  const isOff = Math.abs(loss - whole.loss) > LOST_DIGITS * whole.loss;
  if (loss === Infinity) {
    return "The probability of the target is less than float32 can hold and became 0. Its logarithm is infinite, and the gradient infinity times 0: NaN. The fused loss is the margin, and its gradient −1.";
  }
  if (Number.isNaN(gradient)) {
    return `1 / q is more than float32 can hold: the chain rule takes infinity from infinity, and the gradient is NaN. The loss is still there${isOff ? ", but its last digits are wrong" : ""}.`;
  }
  if (probability < SMALLEST_NORMAL) return "The probability is so small that float32 holds it with fewer digits. The next step breaks the gradient.";
  return isOff
    ? "The digits of the loss are going: rounded to float32, the probability knows too little of what its logarithm needs."
    : "Both routes agree: the two slopes are still numbers of float32.";
}
