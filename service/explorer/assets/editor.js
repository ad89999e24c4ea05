// The batch as a table: every logit and target, the loss of every row, and which row is shown above.
import { byId, element, numberField, put, refill } from "./elements.js";
import { classesOf } from "./state.js";

export class Editor {
  #state;
  #on;
  #lines = [];

  /** `on.change()` follows every edit, `on.select(row)` the choice of another row. */
  constructor(state, on) {
    this.#state = state;
    this.#on = on;
  }

  /** Build the table anew, after another number of rows or classes, or another kind of target. */
  build() {
    const { isSoft } = this.#state;
    const classes = Array.from({ length: classesOf(this.#state) }, (_, place) =>
      element("th", { scope: "col" }, `class ${place}`),
    );
    const headings = [element("th", { scope: "col" }, "row"), element("td"), ...classes];
    if (!isSoft) headings.push(element("th", { scope: "col" }, "target"));
    headings.push(element("td", { "aria-hidden": "true", class: "head" }, "softmax"), element("th", { scope: "col" }, "loss"));
    this.#lines = this.#state.rows.map((_, number) => this.#line(number));
    byId("table").replaceChildren(
      element("thead", {}, element("tr", {}, headings)),
      ...this.#lines.map((line) => line.group),
    );
    this.write();
  }

  #line(number) {
    const { isSoft } = this.#state;
    const select = element("input", {
      type: "radio",
      name: "row",
      "aria-label": `Show row ${number}`,
      onchange: () => this.#on.select(number),
    });
    const heading = element(
      "th",
      { scope: "rowgroup", rowspan: isSoft ? 2 : 1 },
      element("label", {}, select, ` ${number}`),
    );
    const logits = this.#cells(number, "logits", "Logit");
    const loss = element("output", { "aria-live": "off", "aria-label": `Loss of row ${number}` });
    const last = element("td", { rowspan: isSoft ? 2 : 1, class: "row-loss" }, loss);
    const parts = Array.from({ length: classesOf(this.#state) }, () => element("span"));
    const spark = element("td", { rowspan: isSoft ? 2 : 1, "aria-hidden": "true" }, element("span", { class: "spark" }, parts));
    const first = [heading, letter("z"), ...logits.map(inCell)];
    if (isSoft) {
      const probs = this.#cells(number, "probs", "Target probability");
      const rows = [
        element("tr", {}, first, spark, last),
        element("tr", {}, letter("p"), probs.map(inCell)),
      ];
      return { group: element("tbody", {}, rows), select, logits, probs, parts, loss };
    }
    const target = this.#target(number);
    const group = element("tbody", {}, element("tr", {}, first, element("td", {}, target), spark, last));
    return { group, select, logits, target, parts, loss };
  }

  #cells(number, name, label) {
    const row = this.#state.rows[number];
    const pointer = name === "logits" ? "/logits" : "/target";
    return row[name].map((value, place) =>
      numberField(
        { "aria-label": `${label} of row ${number}, class ${place}`, "data-pointer": `${pointer}/${number}/${place}` },
        value,
        (entered) => {
          row[name][place] = entered;
          this.#on.change();
        },
        { step: name === "logits" ? 0.1 : 0.05 },
      ),
    );
  }

  #target(number) {
    const row = this.#state.rows[number];
    const field = element("select", {
      "aria-label": `Target of row ${number}`,
      "data-pointer": `/target/${number}`,
      onchange: () => {
        row.target = Number(field.value);
        this.#on.change();
      },
    });
    return field;
  }

  /** Write the state into the controls. */
  write() {
    this.#lines.forEach((line, number) => {
      const row = this.#state.rows[number];
      line.select.checked = number === this.#state.selected;
      line.group.classList.toggle("selected", line.select.checked);
      line.logits.forEach((field, place) => refill(field, row.logits[place]));
      if (line.probs) line.probs.forEach((field, place) => refill(field, row.probs[place]));
      else writeTargets(line.target, row, this.#state.ignoreIndex);
    });
  }

  /** Write the loss of every row and draw its softmax, where they are known. */
  draw(losses, probs) {
    this.#lines.forEach((line, number) => {
      put(line.loss, losses?.[number], 5);
      line.parts.forEach((part, place) => {
        part.style.setProperty("--size", probs?.[number][place] ?? 0);
        part.classList.toggle("wanted", !this.#state.isSoft && this.#state.rows[number].target === place);
      });
    });
  }
}

/** Offer the classes, and the index that skips a row; keep what is chosen even when it is neither. */
function writeTargets(field, row, ignoreIndex) {
  const choices = new Set([...row.logits.keys(), ignoreIndex, row.target]);
  const wanted = [...choices].map((choice) => [choice, choice === ignoreIndex ? `${choice}: skip` : String(choice)]);
  if (JSON.stringify(wanted) !== field.dataset.choices) {
    field.dataset.choices = JSON.stringify(wanted);
    field.replaceChildren(...wanted.map(([value, text]) => element("option", { value }, text)));
  }
  field.value = row.target;
}

const inCell = (field) => element("td", {}, field);
const letter = (name) => element("td", { class: "letter", "aria-hidden": "true" }, element("i", {}, name));
