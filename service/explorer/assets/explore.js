// Puts the page together: the state, its controls, the service's answers, and what is drawn of them.
import { Editor } from "./editor.js";
import { byId, element, listenForNumbers } from "./elements.js";
import { targetMass } from "./formulas.js";
import { Margin } from "./margin.js";
import { Options } from "./options.js";
import { PRESETS } from "./presets.js";
import { showProblem } from "./problems.js";
import { GRADIENT_URL, LOSS_URL, Live, SOFTMAX_URL } from "./requests.js";
import { drawResult } from "./result.js";
import { LANGUAGES, snippet } from "./snippets.js";
import { Stage } from "./stage.js";
import {
  FEWEST_CLASSES,
  MOST_CLASSES,
  MOST_ROWS,
  addClass,
  addRow,
  classesOf,
  removeClass,
  removeRow,
  requestOf,
  rowLossRequestOf,
  setSoft,
  softmaxRequestOf,
  stateOf,
} from "./state.js";

const state = stateOf(PRESETS[0]);
let round = {};
let rate = 1;

const stage = new Stage(state, changed);
const editor = new Editor(state, { change: changed, select: selected });
const options = new Options(state, changed);
new Margin((logits, target) => {
  start({ rows: [{ logits, target }] }, null);
  byId("story").textContent =
    "The margin from below: the softmax of the target is too small for float32, but the loss and the gradient are as they should be.";
  byId("presets").scrollIntoView({ block: "start" });
});
const live = new Live(
  () => ({
    gradient: [GRADIENT_URL, requestOf(state)],
    softmax: [SOFTMAX_URL, softmaxRequestOf(state)],
    rows: [LOSS_URL, rowLossRequestOf(state)],
  }),
  answered,
  { onbusy: (isBusy) => byId("floor").setAttribute("aria-busy", isBusy), isWaitingForKey: byId("main").dataset.keys === "needed" },
);

/** After an edit: write it everywhere, and ask anew. */
function changed() {
  stage.write();
  editor.write();
  options.write();
  writeSnippet();
  live.changed();
}

/** After another shape or kind of target: build the controls anew. What was answered is of another shape. */
function rebuilt() {
  round = {};
  live.forget();
  stage.build();
  editor.build();
  options.build();
  for (const choice of document.querySelectorAll("[name=kind]")) choice.checked = (choice.value === "probs") === state.isSoft;
  document.body.classList.toggle("is-soft", state.isSoft);
  byId("add-row").disabled = state.rows.length >= MOST_ROWS;
  byId("remove-row").disabled = state.rows.length <= 1;
  byId("add-class").disabled = classesOf(state) >= MOST_CLASSES;
  byId("remove-class").disabled = classesOf(state) <= FEWEST_CLASSES;
  changed();
}

function selected(number) {
  state.selected = number;
  stage.build();
  editor.write();
  draw();
}

function start(preset, chosen) {
  Object.assign(state, stateOf(preset));
  stage.forget();
  for (const chip of byId("presets").children) chip.setAttribute("aria-pressed", chip === chosen);
  rebuilt();
}

function answered(replies) {
  round = Object.fromEntries(Object.entries(replies).map(([name, { answer }]) => [name, answer]));
  const problem = Object.values(replies).find((reply) => reply.problem)?.problem;
  const needsKey = problem?.status === 401;
  if (needsKey || !problem) byId("key").hidden = !needsKey;
  showProblem(problem);
  draw();
}

/** Draw what the service has answered for the row shown. */
function draw() {
  const { gradient, softmax, rows } = round;
  const place = state.selected;
  const row = state.rows[place];
  const target = targetMass(state, row);
  const logsumexp = softmax?.logsumexp[place];
  const probs = softmax?.probs[place];
  // ln q of a probability too small for its type is still there in the logits.
  const logq = probs?.map((q, j) => (q > 0.5 ? Math.log(q) : row.logits[j] / state.temperature - logsumexp));
  stage.draw({ probs, gradient: gradient?.grad_logits[place], share: target.share });
  editor.draw(rows?.loss, softmax?.probs);
  drawResult(state, {
    loss: Array.isArray(gradient?.loss) ? undefined : gradient?.loss,
    totalWeight: gradient?.total_weight,
    rowLoss: rows?.loss[place],
    logq,
    logsumexp,
    target,
  });
}

function step() {
  const gradients = round.gradient?.grad_logits;
  if (!gradients) return;
  state.rows.forEach((row, number) => {
    row.logits = row.logits.map((logit, place) => Number((logit - rate * gradients[number][place]).toPrecision(7)));
  });
  changed();
  stage.measure();
}

const language = () => document.querySelector("[name=language]:checked").value;

function writeSnippet() {
  byId("snippet").textContent = snippet(language(), GRADIENT_URL, requestOf(state), live.hasKey);
  byId("copy").textContent = `Copy as ${language()}`;
}

async function copy() {
  const text = byId("snippet").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages without TLS have no clipboard of their own; selecting and copying works everywhere.
    getSelection().selectAllChildren(byId("snippet"));
    document.execCommand("copy");
  }
  byId("copy").textContent = "Copied";
  byId("copied").textContent = `Copied as ${language()}.`;
  setTimeout(() => {
    byId("copied").textContent = "";
    writeSnippet();
  }, 2000);
}

for (const preset of PRESETS) {
  const chip = element("button", { type: "button", class: "chip" }, preset.name);
  chip.addEventListener("click", () => {
    start(preset, chip);
    byId("story").textContent = preset.story;
  });
  byId("presets").append(chip);
}
for (const name of Object.keys(LANGUAGES)) {
  const choice = element("input", { type: "radio", name: "language", value: name, onchange: writeSnippet });
  choice.checked = name === "curl";
  byId("languages").append(element("label", {}, choice, ` ${name}`));
}
const restructure = { "add-row": addRow, "remove-row": removeRow, "add-class": addClass, "remove-class": removeClass };
for (const [id, change] of Object.entries(restructure)) {
  byId(id).addEventListener("click", () => {
    change(state);
    rebuilt();
  });
}
for (const choice of document.querySelectorAll("[name=kind]")) {
  choice.addEventListener("change", () => {
    setSoft(state, choice.value === "probs");
    rebuilt();
  });
}
byId("step").addEventListener("click", step);
listenForNumbers(byId("rate"), (value) => (rate = value));
byId("copy").addEventListener("click", copy);
byId("key").hidden = byId("main").dataset.keys !== "needed";
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  live.useKey(byId("key-text").value.trim());
  writeSnippet();
});
byId("presets").firstChild.click();
