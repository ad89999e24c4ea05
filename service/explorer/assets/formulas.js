// What the page needs of the formulas to draw them; results are the service's.

/**
 * Return the mass t that a row's target gives each class, weights and smoothing included, as torch defines it.
 * `total` is its sum T; the gradient by the logits is a (T q − t), so `share` = t / T is what q is drawn towards.
 */
export function targetMass(state, row) {
  const classes = row.logits.length;
  const weight = state.weight ?? row.logits.map(() => 1);
  const isSkipped = !state.isSoft && row.target === state.ignoreIndex;
  const mass = row.logits.map((_, place) => {
    if (isSkipped) return 0;
    const even = (weight[place] * state.smoothing) / classes;
    const given = state.isSoft
      ? weight[place] * row.probs[place]
      : place === row.target ? weight[place] : 0;
    return (1 - state.smoothing) * given + even;
  });
  const total = mass.reduce((sum, t) => sum + t, 0);
  const share = total > 0 && Number.isFinite(total) ? mass.map((t) => t / total) : null;
  return { mass, total, share, isSkipped };
}

/** Return the entropy −Σ p ln p; 0 ln 0 is 0. */
export const entropy = (p) => p.reduce((sum, one) => sum - (one > 0 ? one * Math.log(one) : 0), 0);

/** Return the divergence Σ p ln(p / q), given ln q; a class with p = 0 adds nothing. */
export const divergence = (p, logq) =>
  p.reduce((sum, one, place) => sum + (one > 0 ? one * (Math.log(one) - logq[place]) : 0), 0);
