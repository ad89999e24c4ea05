// Makes elements, and writes numbers for people.

/** Return an element with attributes, listeners (`onclick`), properties (`.value`) and children. */
export function element(name, attributes = {}, ...children) {
  return furnished(document.createElement(name), attributes, children);
}

/** Return an SVG element. */
export function drawn(name, attributes = {}, ...children) {
  return furnished(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function furnished(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith(".")) made[key.slice(1)] = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat());
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Return a number in at most `digits` significant digits, with a real minus sign; "–" when there is none. */
export function shown(value, digits = 4) {
  if (value === undefined || value === null) return "–";
  if (!Number.isFinite(value)) return String(value).replace("-", "−");
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)));
  return text.replace(/-/g, "−");
}

/** Return a number of the size of a probability with four decimals, so that columns of them line up. */
export function shownPart(value) {
  const isPlain = Number.isFinite(value) && (value === 0 || (Math.abs(value) >= 5e-5 && Math.abs(value) < 1000));
  return isPlain && !Number.isInteger(value) ? value.toFixed(4).replace("-", "−") : shown(value, 2);
}

/** Put a number into an element: rounded for the reader, exact in its title. */
export function put(target, value, digits) {
  fill(target, value, shown(value, digits));
}

/** The same, with four decimals. */
export function putPart(target, value) {
  fill(target, value, shownPart(value));
}

function fill(target, value, text) {
  target.textContent = text;
  if (value === undefined || value === null) {
    delete target.dataset.value;
    target.removeAttribute("title");
  } else {
    target.dataset.value = String(value);
    target.title = String(value);
  }
}

/** Return the number that a text says, infinities included, or null. */
export function parsed(text) {
  const plain = text.trim().replace(/−/g, "-").replace(/^([+-]?)(inf|infinity|∞)$/i, "$1Infinity");
  if (plain === "" || !/^[+-]?(Infinity|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)$/i.test(plain)) return null;
  return Number(plain);
}

/** Return a number as a field holds it. */
export const written = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(7))) : String(value));

/**
 * Return a text field for a number. The arrow keys change it by `step`, with Shift by ten times that.
 * `onnumber` is called with every number that is entered; while there is none, the field is marked.
 */
export function numberField(attributes, value, onnumber, { step = 0.1, integral = false } = {}) {
  const field = element("input", {
    type: "text",
    class: "number",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    ...attributes,
    ".value": written(value),
  });
  listenForNumbers(field, onnumber, { step, integral });
  return field;
}

/** Do for a field of the page what `numberField` does for its own. */
export function listenForNumbers(field, onnumber, { step = 0.1, integral = false } = {}) {
  const read = () => {
    const number = parsed(field.value);
    const good = number !== null && !(integral && !Number.isInteger(number));
    field.setCustomValidity(good ? "" : `Not ${integral ? "an integer" : "a number"}`);
    field.toggleAttribute("data-unread", !good);
    if (good) onnumber(number);
  };
  field.addEventListener("input", read);
  field.addEventListener("keydown", (event) => {
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const number = parsed(field.value);
    if (!direction || number === null) return;
    event.preventDefault();
    field.value = written(Number((number + direction * step * (event.shiftKey ? 10 : 1)).toFixed(6)));
    read();
  });
}

/** Set what a field holds, unless the reader is typing there. */
export function refill(field, value) {
  if (document.activeElement === field && parsed(field.value) === value) return;
  if (field.hasAttribute("data-unread") && document.activeElement === field) return;
  field.value = written(value);
  field.toggleAttribute("data-unread", false);
  field.setCustomValidity("");
}
