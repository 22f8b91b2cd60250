// The molecule in 3D, by 3Dmol.js.

import { bonded } from "./molecule.js";
import { COLOUR } from "./overlay.js";

let viewer, seen;

export function show(element, molecule, dark) {
  if (!window.$3Dmol) return;
  viewer ??= window.$3Dmol.createViewer(element, { backgroundColor: dark ? "#24272b" : "#f3f3f3" });
  const atoms = molecule.atoms.map((a, i) => ({
    elem: a.element, x: a.position[0], y: a.position[1], z: a.position[2], serial: i, bonds: [], bondOrder: [],
    properties: {}, opacity: a.confidence,
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
  const colour = { prop: "elem", map: COLOUR };
  model.setStyle({}, { stick: { radius: 0.12, colorscheme: colour }, sphere: { scale: 0.28, colorscheme: colour } });
  if (seen !== molecule.model) viewer.zoomTo(); // a new prediction; edits leave the view as it is
  seen = molecule.model;
  viewer.render();
}
