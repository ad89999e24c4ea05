// The options of the request as controls.
import { byId, element, numberField, refill } from "./elements.js";
import { classesOf } from "./state.js";

const SAYS = {
  smoothing: "the part of the target's mass that is spread over all classes",
  temperature: "divides the logits; large ones flatten the softmax",
  reduction: "what becomes of the losses of the rows",
  ignoreIndex: "a row with this target is skipped",
  weight: "what a row counts, by its class; the mean divides by what the rows count",
};

export class Options {
  #state;
  #onchange;
  #ranged = {};
  #reduction;
  #ignoreIndex;
  #weighted;
  #weights;

  constructor(state, onchange) {
    this.#state = state;
    this.#onchange = onchange;
    byId("options").append(
      this.#range("smoothing", "Label smoothing", "/label_smoothing", { min: 0, max: 1, step: 0.01 }),
      this.#range("temperature", "Temperature", "/temperature", { min: 0.1, max: 5, step: 0.1 }),
      this.#reductionCard(),
      this.#ignoreCard(),
      this.#weightCard(),
    );
  }

  #set(key, value) {
    this.#state[key] = value;
    this.#onchange();
  }

  #range(key, name, pointer, { min, max, step }) {
    const id = `option-${key}`;
    const slider = element("input", {
      id,
      type: "range",
      min,
      max,
      step,
      "aria-describedby": `${id}-says`,
      oninput: () => this.#set(key, Number(slider.value)),
    });
    const field = numberField(
      { "aria-label": `${name} as a number`, "data-pointer": pointer },
      this.#state[key],
      (value) => this.#set(key, value),
      { step },
    );
    this.#ranged[key] = { slider, field };
    return card(key, element("label", { for: id }, name), element("div", { class: "line" }, slider, field));
  }

  #reductionCard() {
    const choices = { mean: "mean", sum: "sum", none: "none: the loss of every row" };
    this.#reduction = element(
      "select",
      {
        id: "option-reduction",
        "data-pointer": "/reduction",
        "aria-describedby": "option-reduction-says",
        onchange: () => this.#set("reduction", this.#reduction.value),
      },
      Object.entries(choices).map(([value, text]) => element("option", { value }, text)),
    );
    return card("reduction", element("label", { for: "option-reduction" }, "Reduction"), this.#reduction);
  }

  #ignoreCard() {
    this.#ignoreIndex = numberField(
      { id: "option-ignoreIndex", "data-pointer": "/ignore_index", "aria-describedby": "option-ignoreIndex-says" },
      this.#state.ignoreIndex,
      (value) => this.#set("ignoreIndex", value),
      { step: 1, integral: true },
    );
    return card("ignoreIndex", element("label", { for: "option-ignoreIndex" }, "Ignore index"), this.#ignoreIndex);
  }

  #weightCard() {
    this.#weighted = element("input", {
      type: "checkbox",
      "aria-describedby": "option-weight-says",
      onchange: () => {
        this.#state.weight = this.#weighted.checked ? Array(classesOf(this.#state)).fill(1) : null;
        this.build();
        this.#onchange();
      },
    });
    this.#weights = element("div", { class: "weights", role: "group", "aria-label": "Class weights" });
    return card("weight", element("label", {}, this.#weighted, " Class weights"), this.#weights);
  }

  /** Build the weights anew, after another number of classes. */
  build() {
    const { weight } = this.#state;
    const fields = (weight ?? []).map((value, place) =>
      element(
        "label",
        {},
        String(place),
        numberField({ "aria-label": `Weight of class ${place}`, "data-pointer": `/weight/${place}` }, value, (entered) => {
          this.#state.weight[place] = entered;
          this.#onchange();
        }),
      ),
    );
    this.#weights.replaceChildren(...fields);
    this.write();
  }

  /** Write the state into the controls. */
  write() {
    for (const [key, { slider, field }] of Object.entries(this.#ranged)) {
      slider.value = this.#state[key];
      refill(field, this.#state[key]);
    }
    this.#reduction.value = this.#state.reduction;
    refill(this.#ignoreIndex, this.#state.ignoreIndex);
    this.#weighted.checked = this.#state.weight !== null;
    this.#state.weight?.forEach((value, place) => refill(this.#weights.children[place].lastChild, value));
  }
}

function card(key, ...children) {
  return element(
    "div",
    { class: "card option", "data-messages": true },
    children,
    element("p", { class: "note", id: `option-${key}-says` }, SAYS[key]),
    element("p", { class: "message", id: `option-${key}-message`, "aria-live": "polite" }),
  );
}
