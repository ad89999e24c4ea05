// Shows a problem of the service beside the control that it is about.
import { byId, element } from "./elements.js";

/** Return the controls that a pointer names: its own, else those within, else those around it. */
function controlsAt(pointer) {
  for (let place = pointer; place; place = place.slice(0, place.lastIndexOf("/"))) {
    const own = document.querySelectorAll(`[data-pointer="${CSS.escape(place)}"]`);
    if (own.length) return [...own];
    const within = document.querySelectorAll(`[data-pointer^="${CSS.escape(`${place}/`)}"]`);
    if (within.length) return [...within];
  }
  return [];
}

/** Show a problem, or none; what was shown before is taken away. */
export function showProblem(problem) {
  for (const control of document.querySelectorAll("[data-pointer][aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-errormessage");
  }
  const controls = problem?.pointer ? controlsAt(problem.pointer) : [];
  const slot = problem && slotOf(problem, controls);
  for (const other of document.querySelectorAll(".message")) if (other !== slot) write(other, "", []);
  if (!problem) return;
  for (const control of controls) {
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-errormessage", slot.id);
  }
  const mend = problem.type ? [" ", element("a", { href: problem.type.replace(/^\//, "") }, "How to mend it")] : [];
  write(slot, problem.detail, [problem.detail, ...mend]);
  if (slot !== byId("message")) {
    write(byId("message"), slot.id, ["There is no answer: ", element("a", { href: `#${slot.id}` }, "see why"), "."]);
  }
}

function slotOf(problem, controls) {
  if (problem.status === 401) return byId("key-message");
  return controls[0]?.closest("[data-messages]")?.querySelector(".message") ?? byId("message");
}

/** Fill a message, unless it says so already: it would be read out again. */
function write(slot, key, children) {
  if (slot.dataset.key === key) return;
  slot.dataset.key = key;
  slot.replaceChildren(...children);
}
