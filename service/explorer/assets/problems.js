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
  const own = controls[0]?.closest("[data-messages]")?.querySelector(".message");
  const slot = problem?.status === 401 ? byId("key-message") : (own ?? byId("message"));
  for (const other of document.querySelectorAll(".message")) if (other !== slot || !problem) other.replaceChildren();
  if (!problem) return;
  for (const control of controls) {
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-errormessage", slot.id);
  }
  if (slot.dataset.detail === problem.detail && slot.hasChildNodes()) return;
  slot.dataset.detail = problem.detail;
  const more = problem.type ? [" ", element("a", { href: problem.type.replace(/^\//, "") }, "How to mend it")] : [];
  slot.replaceChildren(problem.detail, ...more);
}
