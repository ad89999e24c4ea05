// The examples: what each sets, and what there is to see in it.

const LN = (probabilities) => probabilities.map((p) => Number(Math.log(p).toFixed(4)));

export const PRESETS = [
  {
    name: "One-hot target",
    rows: [{ logits: [1.1316, -0.7943, 0.1328], target: 0 }],
    story:
      "The class that came was 0, so the target is all on it, and of the whole sum one term is left: the loss is −ln q₀, " +
      "how surprised the softmax is. The gradient is q − p: class 0 should go up by what it lacks, the others down by what they have.",
  },
  {
    name: "Confident, right",
    rows: [{ logits: [6, -2, -1], target: 0 }],
    story:
      "Nearly all the mass is where it should be. The loss is close to 0, and so is the gradient: there is nothing left to push. " +
      "Near q = 1 a small logit away from the rest costs almost nothing.",
  },
  {
    name: "Confident, wrong",
    rows: [{ logits: [8, 0, -1], target: 1 }],
    story:
      "The loss grows as the target falls behind, by 1 for every 1 of margin and without end. The gradient does not: " +
      "it never leaves the range from −1 to 1. Being very wrong costs much, but pushes no harder than being quite wrong.",
  },
  {
    name: "Knows nothing",
    rows: [{ logits: [0, 0, 0, 0], target: 2 }],
    story:
      "Equal logits are the uniform distribution, whatever their common value: only differences count. The loss is ln 4 = 1.386, " +
      "what an untrained model of four classes begins with.",
  },
  {
    name: "A masked class",
    rows: [{ logits: [1.2, -Infinity, 0.3, -0.5], target: 0 }],
    story:
      "A logit of −Infinity takes a class out: its probability is 0 exactly, its gradient too, and the others share the mass. " +
      "Make it the target, and the loss is infinite, but the gradient still is not.",
  },
  {
    name: "A teacher's opinion",
    rows: [{ logits: [1.1316, -0.7943, 0.1328], probs: [0.7, 0.1, 0.2] }],
    story:
      "The target is a distribution, from a teacher for example. Every class counts by its share: the loss is −Σ p ln q, the mean of the heights of the dots. " +
      "The gradient is q − p as before: the one-hot target was a special case.",
  },
  {
    name: "Student equals teacher",
    rows: [{ logits: LN([0.7, 0.1, 0.2]), probs: [0.7, 0.1, 0.2] }],
    story:
      "The student says what the teacher says: the divergence and the gradient are 0. The loss is not. What is left is the entropy of p, " +
      "which no student can go below.",
  },
  {
    name: "Three rows",
    rows: [
      { logits: [1.1316, -0.7943, 0.1328], target: 0 },
      { logits: [0.2654, 0.1978, -0.0265], target: 1 },
      { logits: [-2.8054, 0.2867, -0.1517], target: 2 },
    ],
    story:
      "A batch: the loss is the mean over its rows, so every gradient is (q − p) / 3. Choose a row in the table below to see it here. " +
      "Set one target to “skip”, and the mean is over the two that are left.",
  },
];
