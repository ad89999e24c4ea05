// What is being explored, how it changes, and the request that it stands for.

export const FEWEST_CLASSES = 2;
export const MOST_CLASSES = 8;
export const MOST_ROWS = 8;

/** The values that the service takes when a request does not say; such options are left out of the request. */
export const DEFAULTS = { smoothing: 0, temperature: 1, reduction: "mean", ignoreIndex: -100 };

export const NAMES = {
  smoothing: "label_smoothing",
  temperature: "temperature",
  reduction: "reduction",
  ignoreIndex: "ignore_index",
};

/** Return a state for a preset: rows of logits with both kinds of target, and options. */
export function stateOf(preset) {
  const isSoft = "probs" in preset.rows[0];
  const rows = preset.rows.map(({ logits, target, probs }) => ({
    logits: [...logits],
    target: target ?? probs.indexOf(Math.max(...probs)),
    probs: probs ? [...probs] : oneHot(logits.length, target),
  }));
  return { rows, isSoft, selected: 0, weight: null, ...DEFAULTS };
}

export const classesOf = (state) => state.rows[0].logits.length;

const oneHot = (classes, target) => Array.from({ length: classes }, (_, place) => (place === target ? 1 : 0));

export function addRow(state) {
  const classes = classesOf(state);
  const logits = Array.from({ length: classes }, (_, place) => [1, 0, -1][place % 3]);
  state.rows.push({ logits, target: 0, probs: oneHot(classes, 0) });
  state.selected = state.rows.length - 1;
}

export function removeRow(state) {
  state.rows.splice(state.selected, 1);
  state.selected = Math.min(state.selected, state.rows.length - 1);
}

export function addClass(state) {
  for (const row of state.rows) {
    row.logits.push(0);
    row.probs.push(0);
  }
  state.weight?.push(1);
}

/** Take the last class away; targets that were it become the one before. */
export function removeClass(state) {
  for (const row of state.rows) {
    row.logits.pop();
    row.probs.pop();
    if (row.target === row.logits.length) row.target -= 1;
  }
  state.weight?.pop();
}

/** Turn between class indices and probabilities. One-hot probabilities follow the index until they are edited. */
export function setSoft(state, isSoft) {
  if (isSoft && !state.isSoft) {
    for (const row of state.rows) {
      const isOneHot = row.probs.every((p) => p === 0 || p === 1);
      if (isOneHot && row.target in row.logits) row.probs = oneHot(row.logits.length, row.target);
    }
  }
  state.isSoft = isSoft;
}

const isDefault = (state, key) => Object.is(state[key], DEFAULTS[key]);

/** Return the body for /v1/cross-entropy and its gradient; infinities stay numbers, see `jsonOf`. */
export function requestOf(state) {
  const body = {
    logits: state.rows.map((row) => row.logits),
    target: state.rows.map((row) => (state.isSoft ? row.probs : row.target)),
  };
  if (state.weight) body.weight = state.weight;
  for (const [key, name] of Object.entries(NAMES)) if (!isDefault(state, key)) body[name] = state[key];
  return body;
}

/** Return the body for /v1/softmax over the same logits. */
export function softmaxRequestOf(state) {
  const body = { logits: state.rows.map((row) => row.logits), outputs: ["probs", "logsumexp"] };
  if (!isDefault(state, "temperature")) body.temperature = state.temperature;
  return body;
}

/** Return the body for the losses of the single rows. */
export const rowLossRequestOf = (state) => ({ ...requestOf(state), reduction: "none", outputs: ["loss"] });

/** Return a body as JSON as the service reads it, matrices with one row a line. */
export function jsonOf(body) {
  const members = Object.entries(body).map(([name, value]) => {
    const start = ` "${name}": `;
    if (!Array.isArray(value) || !Array.isArray(value[0])) return start + flat(value);
    return `${start}[${value.map(flat).join(`,\n${" ".repeat(start.length + 1)}`)}]`;
  });
  return `{${members.join(",\n").slice(1)}}`;
}

function flat(value) {
  if (Array.isArray(value)) return `[${value.map(flat).join(", ")}]`;
  return typeof value === "number" && !Number.isFinite(value) ? `"${value}"` : JSON.stringify(value);
}
