// The unstable route beside the fused one, in float32, and the margins at which it breaks.
import { byId, drawn, element, listenForNumbers, put, refill, shown } from "./elements.js";
import { apart, firstBroken, fused } from "./float32.js";

const MOST = 120;
const STEP = 0.25;
const SPACE = { left: 34, right: 14, top: 30, bottom: 44 };
const HEIGHT = 280;
const TARGET = 1;

const rowOf = (margin) => [margin, 0];

const LINES = [
  ["loss", ["loss"], "loss"],
  ["probability", [element("i", {}, "q"), element("sub", {}, element("i", {}, "k"))], "probability"],
  ["logarithmSlope", ["slope of the logarithm"], null],
  ["softmaxSlope", ["slope of softmax"], null],
  ["gradient", ["gradient by ", element("i", {}, "z"), element("sub", {}, element("i", {}, "k"))], "gradient"],
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
    new ResizeObserver(() => this.#drawPlot()).observe(byId("margin-plot"));
    this.#draw();
  }

  #set(margin) {
    this.#margin = margin;
    this.#draw();
  }

  #buildTable() {
    const body = byId("routes").tBodies[0];
    for (const [name, label, inFused] of LINES) {
      const left = element("td", { "data-route": "apart", "data-name": name });
      const right = element("td", { "data-route": "fused", "data-name": name });
      this.#cells[name] = { left, right, inFused };
      body.append(element("tr", {}, element("th", { scope: "row" }, label), left, right));
    }
  }

  #draw() {
    byId("margin").value = this.#margin;
    refill(byId("margin-number"), this.#margin);
    const broken = apart(rowOf(this.#margin), TARGET);
    const whole = fused(rowOf(this.#margin), TARGET);
    for (const [name, { left, right, inFused }] of Object.entries(this.#cells)) {
      put(left, broken[name], 6);
      left.classList.toggle("broken", !Number.isFinite(broken[name]));
      if (inFused) put(right, whole[inFused], 6);
      else right.textContent = "not needed";
    }
    byId("verdict").textContent = this.#verdict(broken, whole);
    this.#drawPlot();
  }

  #verdict({ loss, probability, gradient }, whole) {
    if (loss === Infinity) {
      return "The probability of the target is less than float32 can hold and became 0: the loss is Infinity, and the gradient infinity times 0, NaN. The fused loss is the margin.";
    }
    if (Number.isNaN(gradient)) {
      return `The probability ${shown(probability)} is so small that 1 / q overflows: infinity times a number near 0 is no gradient. The loss has lost its digits, too.`;
    }
    const error = Math.abs(loss - whole.loss) / whole.loss;
    if (probability < 2 ** -126) return "The probability is below what float32 holds with all its digits; the loss is losing them.";
    return error > 1e-5
      ? "The probability of the target is so close to 1 that its logarithm loses digits; the fused route keeps them."
      : "Both routes agree, as far as float32 goes.";
  }

  #drawPlot() {
    const svg = byId("margin-plot");
    const width = Math.max(240, svg.clientWidth);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const x = (margin) => SPACE.left + (margin / MOST) * (width - SPACE.left - SPACE.right);
    const y = (loss) => HEIGHT - SPACE.bottom - (loss / MOST) * (HEIGHT - SPACE.top - SPACE.bottom);
    const margins = Array.from({ length: MOST / STEP + 1 }, (_, step) => step * STEP);
    const line = (route) =>
      margins
        .map((margin) => [margin, route(rowOf(margin), TARGET).loss])
        .filter(([, loss]) => Number.isFinite(loss))
        .map(([margin, loss]) => `${x(margin).toFixed(1)},${y(loss).toFixed(1)}`)
        .join(" ");
    const ticks = [0, 20, 40, 60, 80, 100, 120].map((margin) => text(x(margin), HEIGHT - 26, margin, "middle"));
    const heights = [40, 80, 120].map((loss) => text(SPACE.left - 6, y(loss) + 4, loss, "end"));
    const [nan, infinite] = [this.#firstNaN, this.#firstInfinite];
    const end = y(apart(rowOf(infinite - 0.02), TARGET).loss);
    svg.replaceChildren(
      svg.querySelector("title"),
      drawn("rect", { class: "zone", x: x(nan), y: SPACE.top, width: x(MOST) - x(nan), height: HEIGHT - SPACE.top - SPACE.bottom }),
      drawn("rect", { class: "zone", x: x(infinite), y: SPACE.top, width: x(MOST) - x(infinite), height: HEIGHT - SPACE.top - SPACE.bottom }),
      drawn("path", { class: "axis", d: `M${x(0)},${SPACE.top}V${y(0)}H${x(MOST)}` }),
      ...ticks,
      ...heights,
      text(x(0) + 8, SPACE.top + 10, "loss", "start", "small"),
      text(x(MOST / 2), HEIGHT - 6, "margin", "middle", "small"),
      text(x(MOST), SPACE.top - 18, `gradient NaN from ${nan.toFixed(1)}`, "end", "bad"),
      text(x(MOST), SPACE.top - 4, `loss Infinity from ${infinite.toFixed(1)}`, "end", "bad"),
      drawn("polyline", { class: "fused", points: line(fused) }),
      drawn("polyline", { class: "apart", points: line(apart) }),
      drawn("path", { class: "apart", d: `M${x(infinite)},${end}V${SPACE.top}` }),
      drawn("path", { class: "here", d: `M${x(this.#margin)},${SPACE.top}V${y(0)}` }),
      drawn("circle", { class: "dot", cx: x(this.#margin), cy: y(fused(rowOf(this.#margin), TARGET).loss), r: 5 }),
      text(x(50), y(50) - 12, "fused", "end", "name-fused"),
      text(x(50) + 8, y(50) + 18, "softmax, then log", "start", "name-apart"),
    );
  }
}

const text = (x, y, words, anchor, kind = "") =>
  drawn("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor, class: kind }, String(words));
