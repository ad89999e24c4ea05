// The loss, where it comes from, and the curve −ln q that it is read from.
import { byId, drawn, element, put, shown } from "./elements.js";
import { divergence, entropy } from "./formulas.js";

const SPEAK_AFTER_MS = 700;
const FRAME = { left: 34, right: 280, top: 10, bottom: 142 };
const LEAST_HEIGHT = 5;

let speaking = null;

/** Draw the answer for the whole batch and for the row shown; what is missing is "–". */
export function drawResult(state, { loss, totalWeight, rowLoss, logq, logsumexp, target }) {
  const isRow = state.reduction === "none";
  const shownLoss = isRow ? rowLoss : loss;
  const rows = state.rows.length;
  byId("loss-caption").textContent = captionOf(state, rows);
  put(byId("loss"), shownLoss, 5);
  byId("derivation").replaceChildren(...derivation(state, { rowLoss, logq, target }));
  byId("facts").replaceChildren(...facts(state, { rowLoss, totalWeight, logq, logsumexp, target, rows }));
  byId("gradient-formula").replaceChildren(...gradientFormula(state, totalWeight, target));
  drawCurve(logq, target);
  speak(shownLoss);
}

function captionOf({ reduction, selected }, rows) {
  if (reduction === "none") return rows > 1 ? `loss of row ${selected}` : "loss";
  return rows > 1 ? `loss, the ${reduction} over ${rows} rows` : "loss";
}

/** Say the loss once it has come to rest. */
function speak(loss) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    byId("spoken").textContent = loss === undefined ? "There is no loss." : `The loss is ${shown(loss, 5)}.`;
  }, SPEAK_AFTER_MS);
}

const variable = (name, index) => [element("i", {}, name), ...(index === undefined ? [] : [element("sub", {}, String(index))])];

/** Say how the loss of the row comes about. */
function derivation(state, { rowLoss, logq, target }) {
  const of = state.rows.length > 1 ? `row ${state.selected}: ` : "";
  if (target.isSkipped) return [`${of}skipped, so its loss and its gradient are 0`];
  if (!logq || !target.share) return [];
  const only = target.share.indexOf(1);
  if (only < 0) {
    const weights = target.total === 1 ? "" : `${shown(target.total)} × `;
    return [`${of}${weights}−Σ `, ...variable("p"), " ln ", ...variable("q"), ` = ${shown(rowLoss, 5)}`];
  }
  const weight = target.total === 1 ? "" : `${shown(target.total)} × `;
  const q = shown(Math.exp(logq[only]));
  return [of, weight, "−ln ", ...variable("q", only), ` = ${weight}−ln ${q} = ${shown(rowLoss, 5)}`];
}

/** Return the gradient by the logits as a formula: q − p, times what weights, mean and temperature make of it. */
function gradientFormula(state, totalWeight, target) {
  const factor = (target.total / (state.reduction === "mean" ? totalWeight : 1)) / state.temperature;
  if (!target.share || !Number.isFinite(factor)) return [];
  const difference = [...variable("q"), " − ", ...variable("p")];
  if (factor === 1) return difference;
  const divisor = 1 / factor;
  const isWhole = Math.abs(divisor - Math.round(divisor)) < 1e-9 && divisor > 1;
  return isWhole ? ["(", ...difference, `) / ${Math.round(divisor)}`] : [`${shown(factor)} × (`, ...difference, ")"];
}

/** Return the numbers beside the loss. */
function facts(state, { totalWeight, logq, logsumexp, target, rows }) {
  const tempered = state.temperature === 1 ? ["z"] : ["z", "/τ"];
  const lines = [[["ln Σ e", element("sup", {}, element("i", {}, tempered[0]), tempered[1] ?? "")], logsumexp, "logsumexp"]];
  if (target.share && logq) {
    lines.push(
      [["divergence Σ ", ...variable("p"), " ln(", ...variable("p"), " / ", ...variable("q"), ")"], divergence(target.share, logq), "divergence"],
      [["entropy of ", ...variable("p")], entropy(target.share), "entropy"],
    );
  }
  if (rows > 1 || state.weight) lines.push([["total weight"], totalWeight, "total-weight"]);
  return lines.map(([label, value, name]) => {
    const number = element("dd", { "data-fact": name });
    put(number, value, 5);
    return element("div", {}, element("dt", {}, label), number);
  });
}

/** Draw −ln q from 0 to 1, a dot for each class with mass, as large as its share, and the mean of their heights. */
function drawCurve(logq, target) {
  const svg = byId("curve");
  const title = svg.querySelector("title");
  const dots = logq && target.share ? target.share.map((p, place) => ({ p, height: -logq[place], place })) : [];
  const seen = dots.filter(({ p }) => p > 0);
  const highest = Math.max(LEAST_HEIGHT, ...seen.map(({ height }) => (Number.isFinite(height) ? height * 1.1 : 0)));
  const { left, right, top, bottom } = FRAME;
  const x = (q) => left + q * (right - left);
  const y = (height) => bottom - Math.min(1, height / highest) * (bottom - top);
  const points = Array.from({ length: 121 }, (_, step) => highest * (1 - step / 120) ** 2).map(
    (height) => `${x(Math.exp(-height)).toFixed(1)},${y(height).toFixed(1)}`,
  );
  const mean = seen.reduce((sum, { p, height }) => sum + p * height, 0);
  const parts = [
    drawn("path", { class: "axis", d: `M${left},${top}V${bottom}H${right}` }),
    label(left, bottom + 17, "0", "middle"),
    label(right, bottom + 17, "1", "middle"),
    label((left + right) / 2, bottom + 20, "q", "middle", "letter"),
    label(left - 5, top + 9, shown(highest, 3), "end"),
    drawn("text", { class: "letter", "text-anchor": "middle", transform: `translate(14 ${(top + bottom) / 2}) rotate(-90)` }, "−ln q"),
    drawn("polyline", { class: "curve", points: points.join(" ") }),
  ];
  if (seen.length > 1 && Number.isFinite(mean)) {
    parts.push(
      drawn("path", { class: "mean", d: `M${left},${y(mean)}H${right}` }),
      label(right + 5, y(mean) + 4, "mean", "start", "small"),
    );
  }
  for (const { p, height, place } of seen) {
    const q = Math.exp(-height);
    const [cx, cy] = [x(q), y(height)];
    parts.push(
      drawn("path", { class: "drop", d: `M${cx},${bottom}V${cy}` }),
      drawn("circle", { class: "dot", cx, cy, r: 3 + 4 * Math.sqrt(p) }),
      label(cx + 9, cy - 7, nameOf(place, height, seen.length), "start", "small"),
    );
  }
  svg.replaceChildren(title, ...parts);
}

/** Name a dot; many dots have room for numbers only. */
function nameOf(place, height, dots) {
  const name = dots > 1 ? String(place) : `class ${place}`;
  return Number.isFinite(height) ? name : `${name}: Infinity`;
}

const label = (x, y, text, anchor, kind = "") =>
  drawn("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor, class: kind }, text);
