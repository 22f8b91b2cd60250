// The molecule and its edits: each returns a new one. Atoms and bonds as in afmol-prediction/1.

export const VALENCE = { H: [1], C: [4], N: [3], O: [2], F: [1], Si: [4], P: [3, 5], S: [2, 4, 6], Cl: [1], Br: [1], I: [1] };
const LIKELY = 0.5;

export const bonded = (molecule) => molecule.bonds.filter((b) => b.probability > LIKELY);

export function moved(molecule, index, by) {
  const atoms = molecule.atoms.map((a, i) => (i === index ? { ...a, position: a.position.map((v, k) => v + by[k]) } : a));
  return { ...molecule, atoms };
}

/** An atom that nobody predicted: certain, since a person put it there. */
export function added(molecule, position, element, elements) {
  const classes = [0, 0, 0, 0, 0];
  classes[elements.find((e) => e.symbol === element).class] = 1;
  const atom = { position, element, class: classes.indexOf(1), class_probabilities: classes, confidence: 1 };
  const next = { ...molecule, atoms: [...molecule.atoms, atom] };
  const index = molecule.atoms.length;
  const near = molecule.atoms.flatMap((other, i) => (distance(other, atom) < reach(other, atom, elements) ? [i] : []));
  return { ...next, bonds: [...next.bonds, ...near.map((i) => ({ atoms: [i, index], probability: 1 }))] };
}

export function removed(molecule, index) {
  const shift = (i) => (i > index ? i - 1 : i);
  const bonds = molecule.bonds.filter((b) => !b.atoms.includes(index)).map((b) => ({ ...b, atoms: b.atoms.map(shift) }));
  return { ...molecule, atoms: molecule.atoms.filter((_, i) => i !== index), bonds };
}

/** Another element; what the network had said of the atom stays. */
export function renamed(molecule, index, element, elements) {
  const known = elements.find((e) => e.symbol === element);
  return { ...molecule, atoms: molecule.atoms.map((a, i) => (i === index ? { ...a, element, class: known.class } : a)) };
}

/** The bond made where there is none, broken where there is one; the network's probability is kept as `said`. */
export function toggled(molecule, i, j) {
  const pair = [Math.min(i, j), Math.max(i, j)];
  const at = molecule.bonds.findIndex((b) => b.atoms[0] === pair[0] && b.atoms[1] === pair[1]);
  if (at < 0) return { ...molecule, bonds: [...molecule.bonds, { atoms: pair, probability: 1 }] };
  const change = (b) => ({ said: b.probability, ...b, probability: b.probability > LIKELY ? 0 : 1 });
  return { ...molecule, bonds: molecule.bonds.map((b, k) => (k === at ? change(b) : b)) };
}

/** What an atom may be, most probable first: elements or, of a model that knows no elements, classes of them. */
export function alternatives(atom, elements) {
  if (atom.elements?.length) return atom.elements.map(([symbol, probability]) => ({ probability, symbols: [symbol] }));
  return atom.class_probabilities
    .map((probability, k) => ({ probability, symbols: elements.filter((e) => e.class === k).map((e) => e.symbol) }))
    .sort((a, b) => b.probability - a.probability);
}

/** What does not add up, by atom: more neighbours than its element binds, or none. */
export function problems(molecule) {
  const count = molecule.atoms.map(() => 0);
  for (const b of bonded(molecule)) for (const i of b.atoms) count[i] += 1;
  const found = new Map();
  molecule.atoms.forEach((a, i) => {
    const most = Math.max(...VALENCE[a.element]);
    if (count[i] > most) found.set(i, `${a.element} ${i + 1} has ${count[i]} neighbours, ${a.element} binds ${most}`);
    else if (!count[i] && molecule.atoms.length > 1) found.set(i, `${a.element} ${i + 1} has no neighbour`);
  });
  return found;
}

export const distance = (a, b) => Math.hypot(...a.position.map((v, k) => v - b.position[k]));

function reach(a, b, elements) {
  const radius = (atom) => elements.find((e) => e.symbol === atom.element).radius;
  return 1.2 * (radius(a) + radius(b));
}
