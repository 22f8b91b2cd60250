// The molecule in 3D, by 3Dmol.js.

import { bonded } from "./molecule.js";
import { COLOUR, opacity } from "./overlay.js";

let viewer, seen;

/** A colour, mixed with the background's: 3Dmol has one opacity for all atoms of a style. */
const mixed = (colour, background, share) =>
  `#${[1, 3, 5].map((k) => {
    const [a, b] = [colour, background].map((c) => parseInt(c.slice(k, k + 2), 16));
    return Math.round(share * a + (1 - share) * b).toString(16).padStart(2, "0");
  }).join("")}`;

export function show(element, molecule, dark) {
  if (!window.$3Dmol) return;
  const background = dark ? "#24272b" : "#f3f3f3";
  viewer ??= window.$3Dmol.createViewer(element, { backgroundColor: background });
  const atoms = molecule.atoms.map((a, i) => ({
    elem: a.element, x: a.position[0], y: a.position[1], z: a.position[2], serial: i, bonds: [], bondOrder: [],
    properties: { colour: mixed(COLOUR[a.element], background, opacity(a.confidence)) },
  }));
  for (const { atoms: [i, j] } of bonded(molecule)) {
    atoms[i].bonds.push(j);
    atoms[j].bonds.push(i);
    atoms[i].bondOrder.push(1);
    atoms[j].bondOrder.push(1);
  }
  viewer.removeAllModels();
  const model = viewer.addModel();
  model.addAtoms(atoms);
  const colorfunc = (atom) => atom.properties.colour;
  model.setStyle({}, { stick: { radius: 0.12, colorfunc }, sphere: { scale: 0.28, colorfunc } });
  if (atoms.length && seen !== molecule.model) viewer.zoomTo(); // a new prediction; edits leave the view as it is
  seen = molecule.model;
  viewer.render();
}
