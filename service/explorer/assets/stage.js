// One row, class by class: its logit as a slider, its softmax as a bar, its gradient as an arrow.
import { byId, element, numberField, putPart, refill } from "./elements.js";
import { classesOf } from "./state.js";

const SLIDER_REACH = 10;
const SHORTEST_ARROW = 0.004;

/** Return the reach of the sliders, in both directions: 10, or what the largest logit needs. */
function reachOf(row) {
  const largest = Math.max(0, ...row.logits.map(Math.abs).filter(Number.isFinite));
  return largest <= SLIDER_REACH ? SLIDER_REACH : Math.ceil(largest / 10) * 10;
}

export class Stage {
  #state;
  #onchange;
  #lines = [];
  #reach = SLIDER_REACH;
  #unmasked = new Map();

  /** `onchange()` is called after the reader has changed the state. */
  constructor(state, onchange) {
    this.#state = state;
    this.#onchange = onchange;
  }

  get #row() {
    return this.#state.rows[this.#state.selected];
  }

  /** Build the lines anew, after another row, another number of classes, or another kind of target. */
  build() {
    this.#lines = Array.from({ length: classesOf(this.#state) }, (_, place) => this.#line(place));
    byId("classes").replaceChildren(...this.#lines.map((line) => line.item));
    this.measure();
  }

  /** Forget what masked logits were; after another preset they are nobody's. */
  forget() {
    this.#unmasked.clear();
  }

  /** Fit the reach of the sliders to the logits; not while one is being dragged, or it would run away. */
  measure() {
    this.#reach = reachOf(this.#row);
    for (const { slider } of this.#lines) {
      slider.min = -this.#reach;
      slider.max = this.#reach;
      slider.step = this.#reach / 100;
    }
    this.write();
  }

  #line(place) {
    const { selected } = this.#state;
    const name = `class ${place}`;
    const pointer = `/logits/${selected}/${place}`;
    const slider = element("input", {
      type: "range",
      class: "slider",
      "aria-label": `Logit of ${name}`,
      oninput: () => this.#setLogit(place, Number(slider.value)),
      onchange: () => this.measure(),
    });
    const number = numberField(
      { "aria-label": `Logit of ${name} as a number`, "data-pointer": pointer },
      this.#row.logits[place],
      (value) => {
        this.#setLogit(place, value);
        this.measure();
      },
    );
    const mask = element(
      "button",
      { type: "button", class: "mask", "aria-label": `Mask ${name}`, title: "mask: a logit of −Infinity", onclick: () => this.#toggleMask(place) },
      "−∞",
    );
    const push = element("span", { class: "push arrow" });
    const fill = element("span", { class: "fill" });
    const arrow = element("span", { class: "arrow" });
    const tick = element("span", { class: "tick" });
    const probability = element("output", { class: "q", "aria-live": "off", "aria-label": `Softmax of ${name}` });
    const gradient = element("output", { class: "g", "aria-live": "off", "aria-label": `Gradient by the logit of ${name}` });
    const target = this.#state.isSoft ? this.#probabilityField(place, name) : this.#targetChoice(place, name);
    const item = element(
      "li",
      { class: "class" },
      target.label,
      element("div", { class: "logit" }, slider, element("span", { class: "track", "aria-hidden": "true" }, push)),
      number,
      mask,
      element(
        "div",
        { class: "figures" },
        element("div", { class: "bar-q", "aria-hidden": "true" }, fill, tick, arrow),
        probability,
        gradient,
      ),
    );
    return { item, slider, number, mask, push, fill, arrow, tick, probability, gradient, target };
  }

  #targetChoice(place, name) {
    const field = element("input", {
      type: "radio",
      name: "stage-target",
      "data-pointer": `/target/${this.#state.selected}`,
      onchange: () => {
        this.#row.target = place;
        this.#onchange();
      },
    });
    return { field, label: element("label", { class: "target" }, field, ` ${name}`) };
  }

  #probabilityField(place, name) {
    const field = numberField(
      { "aria-label": `Target probability of ${name}`, "data-pointer": `/target/${this.#state.selected}/${place}` },
      this.#row.probs[place],
      (value) => {
        this.#row.probs[place] = value;
        this.#onchange();
      },
      { step: 0.05 },
    );
    return { field, label: element("span", { class: "target" }, `${name} `, element("i", {}, "p"), " ", field) };
  }

  #setLogit(place, value) {
    this.#row.logits[place] = value;
    this.#onchange();
  }

  #toggleMask(place) {
    const key = `${this.#state.selected}/${place}`;
    const current = this.#row.logits[place];
    if (current !== -Infinity) this.#unmasked.set(key, current);
    this.#setLogit(place, current === -Infinity ? (this.#unmasked.get(key) ?? 0) : -Infinity);
  }

  /** Write the state into the controls. */
  write() {
    this.#lines.forEach((line, place) => {
      const logit = this.#row.logits[place];
      const isMasked = logit === -Infinity;
      line.item.classList.toggle("masked", isMasked);
      line.slider.disabled = !Number.isFinite(logit);
      line.slider.value = Number.isFinite(logit) ? logit : Math.sign(logit) * this.#reach;
      line.mask.setAttribute("aria-pressed", isMasked);
      refill(line.number, logit);
      if (this.#state.isSoft) refill(line.target.field, this.#row.probs[place]);
      else line.target.field.checked = this.#row.target === place;
    });
  }

  /** Draw the service's numbers for this row; `share` is what its softmax is drawn towards, null for a skipped row. */
  draw({ probs, gradient, share }) {
    this.#lines.forEach((line, place) => {
      const q = probs?.[place];
      const p = share?.[place];
      putPart(line.probability, q);
      putPart(line.gradient, gradient?.[place]);
      line.fill.style.setProperty("--size", Number.isFinite(q) ? q : 0);
      line.tick.hidden = p === undefined;
      line.tick.style.setProperty("--at", p ?? 0);
      aim(line.arrow, q, p);
      this.#push(line, gradient?.[place]);
    });
  }

  /** Draw the way a step downhill moves the logit, from the thumb of its slider; a gradient of 1 is a quarter track. */
  #push(line, gradient) {
    const logit = Number(line.slider.value);
    const at = (logit + this.#reach) / (2 * this.#reach);
    const to = Math.min(1, Math.max(0, at - 0.25 * gradient));
    aim(line.push, line.slider.disabled ? undefined : at, to);
  }
}

/** Lay an arrow from one place to another, both as parts of the width of its track. */
function aim(arrow, from, to) {
  const isSeen = Number.isFinite(from) && Number.isFinite(to) && Math.abs(to - from) >= SHORTEST_ARROW;
  arrow.hidden = !isSeen;
  if (!isSeen) return;
  arrow.classList.toggle("leftwards", to < from);
  arrow.style.setProperty("--at", Math.min(from, to));
  arrow.style.setProperty("--size", Math.abs(to - from));
}
