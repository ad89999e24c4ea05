// Both routes to the loss of a row in float32: every operation is rounded with Math.fround, in the order torch has them.

const f = Math.fround;

function exponentials(logits) {
  const top = f(Math.max(...logits));
  const powers = logits.map((z) => f(Math.exp(f(f(z) - top))));
  return { top, powers, sum: powers.reduce((sum, power) => f(sum + power), 0) };
}

/** Softmax, then the logarithm, then the chain rule back through both, as autograd does it. */
export function apart(logits, target) {
  const { powers, sum } = exponentials(logits);
  const q = powers.map((power) => f(power / sum));
  const logarithmSlope = f(-1 / q[target]);
  const softmaxSlope = f(q[target] * f(1 - q[target]));
  const inner = f(logarithmSlope * q[target]);
  return {
    probability: q[target],
    loss: f(-f(Math.log(q[target]))),
    logarithmSlope,
    softmaxSlope,
    gradient: f(q[target] * f(logarithmSlope - inner)),
  };
}

/** The fused operation: (m − z) + ln Σ e^(z − m), and q − 1; for the largest logit ln(1 + rest), and minus the rest. */
export function fused(logits, target) {
  const { top, powers, sum } = exponentials(logits);
  const rest = powers.reduce((total, power, place) => (place === target ? total : f(total + power)), 0);
  const isTop = f(logits[target]) === top;
  return {
    probability: f(powers[target] / sum),
    loss: isTop ? f(Math.log1p(rest)) : f(f(top - f(logits[target])) + f(Math.log(sum))),
    gradient: isTop ? -f(rest / sum) : f(f(powers[target] / sum) - 1),
  };
}

/** Return the least margin in [0, 120], to 0.01, from which on `isBroken` holds for the route apart. */
export function firstBroken(isBroken) {
  let [good, bad] = [0, 120];
  while (bad - good > 0.01) {
    const middle = (good + bad) / 2;
    if (isBroken(apart([middle, 0], 1))) bad = middle;
    else good = middle;
  }
  return bad;
}
