// Draws lines over the margin into an SVG as wide as its place, with letters of one size.
import { drawn } from "./elements.js";

const SPACE = { left: 44, right: 14, top: 34, bottom: 44 };
const HEIGHT = 280;
const LEAST_WIDTH = 240;
const TICKS = 6;

/**
 * Draw `lines`, [{ kind, points: [[x, y], ...] }], over x from 0 to `most` and y within `range`.
 * `heights` are the marks of the y axis, [[y, text], ...]; `zones` begin at an x and reach to the end; `names` are
 * [{ x, y, text, kind, anchor }]; `titles` stand above the plot, from the bottom up; `here` is the x to mark, and `dot` its y.
 */
export function plot(svg, { most, range, heights, lines, zones, names, titles, here, dot, xName, yName }) {
  const width = Math.max(LEAST_WIDTH, svg.clientWidth);
  const [bottom, top] = [HEIGHT - SPACE.bottom, SPACE.top];
  const x = (value) => SPACE.left + (value / most) * (width - SPACE.left - SPACE.right);
  const y = (value) => bottom - ((value - range[0]) / (range[1] - range[0])) * (bottom - top);
  const write = (left, height, text, anchor, kind = "") =>
    drawn("text", { x: left.toFixed(1), y: height.toFixed(1), "text-anchor": anchor, class: kind }, String(text));
  const ticks = Array.from({ length: TICKS + 1 }, (_, tick) => (most * tick) / TICKS);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren(
    svg.querySelector("title"),
    ...zones.map((from) => drawn("rect", { class: "zone", x: x(from), y: top, width: x(most) - x(from), height: bottom - top })),
    drawn("path", { class: "axis", d: `M${x(0)},${top}V${bottom}H${x(most)}` }),
    ...ticks.map((tick) => write(x(tick), bottom + 18, tick, "middle")),
    ...heights.map(([value, text]) => write(SPACE.left - 6, y(value) + 4, text, "end")),
    write(x(most / 2), HEIGHT - 6, xName, "middle"),
    write(4, top - 12, yName, "start"),
    ...titles.map((text, place) => write(x(most), top - 5 - 14 * place, text, "end", "bad")),
    ...lines.map(({ kind, points }) =>
      drawn("polyline", { class: kind, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }),
    ),
    drawn("path", { class: "here", d: `M${x(here)},${top}V${bottom}` }),
    ...(dot === undefined ? [] : [drawn("circle", { class: "dot", cx: x(here), cy: y(dot), r: 5 })]),
    ...names.map((name) => write(x(name.x), y(name.y), name.text, name.anchor, name.kind)),
  );
}
