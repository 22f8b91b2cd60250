// Atoms and bonds over the slice: drawn, chosen, dragged.

import { bonded } from "./molecule.js";

const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, which colour-blind people tell apart; beside them every atom but C and H has its letters.
export const COLOUR = {
  H: "#ffffff", C: "#505050", N: "#0072b2", O: "#d55e00", F: "#009e73", Si: "#b59a7a", P: "#e69f00", S: "#f0e442",
  Cl: "#56b4e9", Br: "#cc79a7", I: "#7a3e9d",
};
const DARK = new Set(["C", "N", "O", "F", "I"]);

const made = (name, attributes, parent) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
};

export const radius = (symbol, elements) => 0.14 + 0.24 * elements.find((e) => e.symbol === symbol).radius;
export const opacity = (probability) => 1 - 0.85 * (1 - probability);

/** Draws a molecule into the overlay. `on`: choose(index), drag(index, [dx, dy]), drop(), free([x, y]), bond(i, j). */
export function draw(svg, stack, molecule, elements, chosen, wrong, on) {
  const [lx, ly] = stack.size;
  const active = document.activeElement?.dataset?.atom;
  svg.setAttribute("viewBox", `0 0 ${lx} ${ly}`);
  svg.replaceChildren();
  const place = (atom) => [atom.position[0], ly - atom.position[1]];
  const at = (event) => {
    const box = svg.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * lx, (1 - (event.clientY - box.top) / box.height) * ly];
  };
  made("rect", { width: lx, height: ly, fill: "transparent" }, svg).addEventListener("click", (e) => on.free(at(e)));
  for (const { atoms: [i, j], probability } of bonded(molecule)) {
    const [[x1, y1], [x2, y2]] = [i, j].map((k) => place(molecule.atoms[k]));
    for (const [name, width] of [["rim", 0.19], ["bond", 0.13]]) {
      const line = made("line", { class: name, x1, y1, x2, y2, "stroke-width": width, opacity: opacity(probability) }, svg);
      line.addEventListener("click", () => on.bond(i, j));
      if (name === "bond") made("title", {}, line).textContent = `bond ${percent(probability)}`;
    }
  }
  const order = molecule.atoms.map((_, i) => i).sort((a, b) => molecule.atoms[a].position[2] - molecule.atoms[b].position[2]);
  const groups = [];
  for (const i of order) {
    const atom = molecule.atoms[i];
    const [x, y] = place(atom);
    const classes = `atom${i === chosen ? " chosen" : ""}${wrong.has(i) ? " problem" : ""}`;
    const label = `${atom.element} ${i + 1}, ${percent(atom.confidence)}${wrong.has(i) ? `, ${wrong.get(i)}` : ""}`;
    const about = { class: classes, tabindex: 0, role: "button", "aria-label": label, "aria-pressed": i === chosen, "data-atom": i };
    const group = (groups[i] = made("g", about));
    const [r, shade] = [radius(atom.element, elements), opacity(atom.confidence)];
    made("circle", { class: "halo", cx: x, cy: y, r: r + 0.06 }, group);
    made("circle", { cx: x, cy: y, r, fill: COLOUR[atom.element], "fill-opacity": shade }, group);
    if (!["C", "H"].includes(atom.element)) {
      const fill = DARK.has(atom.element) ? "#fff" : "#000";
      made("text", { x, y, fill, "font-size": r * (atom.element[1] ? 1 : 1.3) }, group).textContent = atom.element;
    }
    made("title", {}, group).textContent = said(atom, i, elements);
    group.addEventListener("focus", () => on.choose(i, false));
    group.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      document.activeElement?.blur(); // else drawing gives the focus, and with it the choice, back to who had it
      on.choose(i, true);
      svg.querySelector(`[data-atom="${i}"]`)?.focus({ preventScroll: true });
      let [before, far] = [at(event), false];
      const move = (e) => {
        const now = at(e);
        if (!far && Math.hypot(now[0] - before[0], now[1] - before[1]) < 0.05) return;
        far = true;
        on.drag(i, [now[0] - before[0], now[1] - before[1]]);
        before = now;
      };
      const up = () => {
        window.removeEventListener("pointermove", move);
        if (far) on.drop();
      };
      window.addEventListener("pointermove", move);
      window.addEventListener("pointerup", up, { once: true });
    });
  }
  svg.append(...groups); // in the order of their numbers, for Tab
  if (active !== undefined) groups[active]?.focus({ preventScroll: true });
}

export const percent = (p) => `${(100 * p).toFixed(p > 0.995 || p < 0.005 ? 1 : 0)} %`;

/** All that the network said of an atom, in one text. */
export function said(atom, index, elements) {
  const names = [0, 1, 2, 3, 4].map((k) => elements.filter((e) => e.class === k).map((e) => e.symbol).join(", "));
  const classes = atom.class_probabilities.map((p, k) => [p, names[k]]).sort((a, b) => b[0] - a[0]);
  const lines = classes.map(([p, name]) => `${name}: ${percent(p)}`);
  const likely = (atom.elements ?? []).map(([symbol, p]) => `${symbol} ${percent(p)}`).join(", ");
  return [`${atom.element} ${index + 1}: there with ${percent(atom.confidence)}`, likely, ...lines].filter(Boolean).join("\n");
}
