// The page: its state, and what happens when something is done to it.

import { info, job } from "./api.js";
import { strips } from "./compare.js";
import { added, alternatives, moved, problems, removed, renamed, toggled } from "./molecule.js";
import { draw, percent } from "./overlay.js";
import { download, packed, unpacked } from "./session.js";
import { show } from "./space.js";
import { paint, range, slice } from "./stack.js";

const $ = (id) => document.getElementById(id);
const known = await info();
const state = { stack: null, molecule: null, past: [], future: [], slice: 0, model: known.model, charges: null, depth: 0.8 };
let chosen = -1, mode = "", running = null, before = null, bondFrom = -1, stale = false, simulating = false;

// Work

const tell = (text, wrong = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("warning", wrong);
};

/** Does a job that a person waits for; one at a time. */
async function work(name, request, payload) {
  running?.abort();
  const mine = (running = new AbortController());
  $("cancel").hidden = false;
  try {
    return await job(name, request, payload, (text) => tell(`${text}…`), mine.signal);
  } catch (error) {
    if (running === mine) tell(error.message, true);
    return null;
  } finally {
    if (running === mine) idle();
    if (stale) simulate(); // what was edited meanwhile
  }
}

function idle() {
  running = null;
  $("cancel").hidden = true;
}

const scan = () => ({ ...state.stack, data: undefined });

async function open(request, payload) {
  const found = await work("open", request, payload);
  if (!found) return;
  const [record, bytes] = found;
  const stack = { ...record, data: new Float32Array(bytes.buffer) };
  if (record.lacks) return ask(stack, request, payload);
  if (state.stack) $("formula").value = ""; // that of the one before
  Object.assign(state, { stack, molecule: null, past: [], future: [], slice: stack.best, charges: null });
  forget();
  all();
  tell(`${stack.name} is open.`);
  await predict();
}

async function openFiles(files) {
  files = [...files];
  const total = files.reduce((sum, f) => sum + f.size, 0);
  if (total > known.largest) return tell(`At most ${known.largest / 2 ** 20} MB can be opened at once.`, true);
  if (files.length === 1 && files[0].name.endsWith(".json")) return restore(await files[0].text());
  await open({ files: files.map((f) => [f.name, f.size]) }, new Blob(files));
}

function restore(text) {
  try {
    Object.assign(state, unpacked(text));
  } catch (error) {
    return tell(error.message, true);
  }
  running?.abort(); // it is of the stack before
  idle();
  $("formula").value = "";
  for (const [id, value] of Object.entries(state.settings ?? {})) {
    if (!$(id) || (id === "tip" && !known.tips[value])) continue;
    $(id).value = value;
    if (id === "tip") tipChosen(); // its charge is a setting of its own, after it
  }
  forget();
  all();
  simulate();
  tell(`${state.stack.name}: the session is restored.`);
}

function ask(stack, request, payload) {
  $("why").textContent = stack.why;
  $("askHeights").hidden = !stack.lacks.includes("heights");
  for (const [k, id] of ["lx", "ly"].entries()) $(id).value = stack.lacks.includes("size") ? "" : stack.size[k].toPrecision(5);
  for (const id of ["channel", "heights"]) $(id).value = "";
  $("askChannel").hidden = !request.files?.some(([name]) => name.endsWith(".sxm"));
  const k = stack.shape[2] - 1;
  const values = slice(stack, k);
  paint($("askImage"), values, stack.shape[0], stack.shape[1], range(values, 1, 99));
  const dialog = $("ask");
  dialog.returnValue = "no";
  dialog.onclose = () => {
    if (dialog.returnValue !== "go") return tell("Not opened.");
    const numbers = $("heights").value.split(/[\s,;]+/).filter(Boolean).map(Number);
    const given = { ...request };
    given.size = [Number($("lx").value), Number($("ly").value)];
    if (stack.lacks.includes("heights")) given.heights = numbers;
    if ($("channel").value && !$("askChannel").hidden) given.channel = $("channel").value;
    open(given, payload);
  };
  dialog.showModal();
}

async function predict(refine = false) {
  const [start, { stack }] = [performance.now(), state];
  const request = { scan: scan(), model: $("model").value, formula: $("formula").value.trim() || null, refine };
  const found = await work("predict", request, stack.data);
  if (!found || state.stack !== stack) return;
  const [record] = found;
  if (state.molecule) state.past.push(state.molecule);
  const { atoms, bonds, warnings: doubts } = record;
  const { name, depth, formula = null } = record.model;
  const molecule = { atoms, bonds, warnings: doubts, formula, by: { model: name, depth }, model: Date.now() };
  Object.assign(state, { molecule, future: [], charges: null });
  forget();
  all();
  const n = atoms.length;
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const warnings = doubts.map((w) => ` Warning: ${w}`).join("");
  const explained = record.explained ? ` A simulation of it correlates by ${record.explained.toFixed(3)}.` : "";
  tell((n ? `${n} atoms in ${seconds} s.` : "No atom was found.") + explained + warnings, warnings !== "");
  simulate();
}

/** The slices the other way round, for a stack that says no heights. */
async function reverse() {
  const { stack } = state;
  const nz = stack.shape[2];
  const data = stack.data.map((_, p) => stack.data[p - (p % nz) + (nz - 1 - (p % nz))]);
  Object.assign(state, { stack: { ...stack, data }, molecule: null, past: [], future: [], slice: nz - 1 - state.slice });
  forget();
  all();
  await predict();
}

// Editing

/** No atom is chosen, and nothing is begun. */
function forget() {
  chosen = -1;
  setMode("");
}

function edit(molecule, sameAtoms = false) {
  setMode("");
  state.past.push(state.molecule);
  state.future = [];
  state.molecule = molecule;
  if (!sameAtoms) state.charges = null;
  all();
  simulate();
}

function step(from, to) {
  if (!from.length) return;
  setMode("");
  to.push(state.molecule);
  state.molecule = from.pop();
  state.charges = null;
  chosen = Math.min(chosen, state.molecule.atoms.length - 1);
  all();
  simulate();
}

const undo = () => step(state.past, state.future);
const redo = () => step(state.future, state.past);

function choose(index, clicked) {
  if (mode === "connect" && clicked && join(index)) return;
  if (index === chosen) return;
  chosen = index;
  atoms();
  inspect();
}

/** Makes or breaks the bond from the atom that was begun with, if there is one; this one is it otherwise. */
function join(index) {
  if (bondFrom < 0 || index === bondFrom) {
    bondFrom = index;
    return false;
  }
  chosen = index;
  edit(toggled(state.molecule, bondFrom, index), true);
  return true;
}

function setMode(next) {
  mode = mode === next ? "" : next;
  if (mode === "connect") bondFrom = chosen;
  for (const name of ["add", "connect"]) $(name).setAttribute("aria-pressed", String(mode === name));
  if (mode) tell(mode === "add" ? "Click where the atom is; Esc: not." : "Choose the other atom; Esc: not.");
}

function addAt([x, y]) {
  if (mode !== "add" || !state.molecule) {
    chosen = -1;
    atoms();
    return inspect();
  }
  const z = chosen >= 0 ? state.molecule.atoms[chosen].position[2] : 0;
  chosen = state.molecule.atoms.length;
  edit(added(state.molecule, [x, y, z], "C", known.elements));
}

function removeChosen() {
  if (chosen < 0) return;
  const index = chosen;
  chosen = -1;
  edit(removed(state.molecule, index));
}

const rename = (symbol) => chosen >= 0 && edit(renamed(state.molecule, chosen, symbol, known.elements));

const KEYS = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], "+": [0, 0, 1], "-": [0, 0, -1] };

function key(event) {
  if (event.target.matches("input:not([type=range]):not([type=checkbox]), select, dialog *")) return;
  const command = event.ctrlKey || event.metaKey;
  const letter = event.key.toLowerCase();
  const onAtom = chosen >= 0 && !event.target.matches("input");
  if (command && letter === "z") event.shiftKey ? redo() : undo();
  else if (command && letter === "y") redo();
  else if (command || !state.stack) return;
  else if (event.key === "PageUp" || event.key === "PageDown") turn(state.slice + (event.key === "PageUp" ? 1 : -1));
  else if (event.key === "Escape") {
    if (mode) setMode(mode);
    document.activeElement.blur();
    addAt([0, 0]);
  } else if (letter === "a" && state.molecule) {
    const from = chosen >= 0 ? state.molecule.atoms[chosen].position : state.stack.size.map((s) => s / 2);
    setMode("add");
    if (event.target.closest?.("#overlay") || chosen >= 0 || !state.molecule.atoms.length) addAt([from[0] + 1, from[1]]);
  } else if (letter === "b" && onAtom) mode === "connect" ? join(chosen) : setMode("connect");
  else if (["Enter", " "].includes(event.key) && mode === "connect" && event.target.closest?.("[data-atom]")) join(chosen);
  else if (onAtom && KEYS[event.key]) {
    const far = event.shiftKey && event.key.startsWith("Arrow") ? 0.5 : 0.05; // many keyboards have + with Shift
    edit(moved(state.molecule, chosen, KEYS[event.key].map((v) => v * far)), true);
  } else if (onAtom && (event.key === "Delete" || event.key === "Backspace")) removeChosen();
  else if (onAtom && /^[1-5]$/.test(event.key)) {
    const may = alternatives(state.molecule.atoms[chosen], known.elements)[event.key - 1];
    if (may) rename(may.symbols[0]);
  }
  else return;
  event.preventDefault();
}

// Drawing

const NOTHING = { atoms: [], bonds: [] };
const on = {
  choose,
  free: addAt,
  bond: (i, j) => mode === "connect" && edit(toggled(state.molecule, i, j), true),
  drag(index, [dx, dy]) {
    before ??= state.molecule;
    state.molecule = moved(state.molecule, index, [dx, dy, 0]);
    atoms();
    inspect();
    simulate();
  },
  drop() {
    const after = state.molecule;
    [state.molecule, before] = [before, null];
    edit(after, true);
  },
};

function all() {
  image();
  atoms();
  inspect();
  const { stack, molecule } = state;
  const [nx, ny, nz] = stack.shape;
  $("slice").max = nz - 1;
  $("frame").style.aspectRatio = `${stack.size[0]} / ${stack.size[1]}`;
  $("about").textContent = `${stack.name}: ${nx} × ${ny} pixels, ${nz} slices, ${stack.size.map((s) => s.toFixed(1)).join(" × ")} Å`;
  $("undo").disabled = !state.past.length;
  $("redo").disabled = !state.future.length;
  $("predict").disabled = $("refine").disabled = false;
  $("reverse").hidden = Boolean(stack.heights);
  $("fit").disabled = !molecule?.atoms.length;
  for (const button of document.querySelectorAll("[data-format], #save")) button.disabled = !molecule;
  const wrong = molecule ? [...problems(molecule).values()] : [];
  $("problems").textContent = wrong.length ? `Does not add up: ${wrong.slice(0, 4).join("; ")}${wrong.length > 4 ? "; …" : ""}` : "";
  show($("space"), molecule ?? NOTHING, matchMedia("(prefers-color-scheme: dark)").matches);
  if (molecule?.atoms.length) return;
  $("strips").replaceChildren();
  $("simulated").textContent = "";
}

function image() {
  const { stack } = state;
  const [nx, ny] = stack.shape;
  const values = slice(stack, state.slice);
  paint($("image"), values, nx, ny, range(values, Number($("low").value), Number($("high").value)));
  $("slice").value = state.slice;
  const which = state.slice === stack.shape[2] - 1 ? ", closest" : state.slice ? "" : ", farthest";
  $("sliceText").textContent = `${state.slice + 1} of ${stack.shape[2]}${which}`;
}

function atoms() {
  const molecule = ($("shown").checked && state.molecule) || NOTHING;
  draw($("overlay"), state.stack, molecule, known.elements, chosen, problems(molecule), on);
}

function turn(k) {
  state.slice = Math.max(0, Math.min(state.stack.shape[2] - 1, k));
  image();
}

/** What is known of the chosen atom, and what else it may be. */
function inspect() {
  $("remove").disabled = chosen < 0;
  const atom = state.molecule?.atoms[chosen];
  if (!atom) return $("inspector").replaceChildren(text("p", "Choose an atom: click it, or Tab to it.", "quiet"));
  const where = atom.position.map((v) => v.toFixed(2)).join(", ");
  const title = text("p", `${atom.element} ${chosen + 1} at ${where} Å; there with ${percent(atom.confidence)}`);
  const select = document.createElement("select");
  select.setAttribute("aria-label", "element");
  const table = document.createElement("table");
  const may = alternatives(atom, known.elements);
  for (const symbol of new Set([...may.flatMap((a) => a.symbols), ...known.elements.map((e) => e.symbol)]))
    select.append(new Option(symbol, symbol, false, symbol === atom.element));
  may.forEach(({ probability, symbols }, k) => {
    const meter = document.createElement("meter");
    meter.value = probability;
    meter.setAttribute("aria-label", `probability of ${symbols.join(", ")}`);
    const row = table.insertRow();
    row.insertCell().append(`${k + 1}`);
    row.insertCell().append(symbols.join(", "));
    row.insertCell().append(meter);
    row.insertCell().append(percent(probability));
  });
  select.onchange = () => {
    rename(select.value);
    $("inspector").querySelector("select")?.focus(); // the new one, so that keys go on where they were
  };
  const label = text("label", "element ");
  label.append(select);
  $("inspector").replaceChildren(title, label, table);
}

function text(tag, content, name = "") {
  const element = document.createElement(tag);
  element.textContent = content;
  element.className = name;
  return element;
}

// The other direction

const conditions = () => ({ above_topmost: Number($("above").value), stiffness: Number($("stiffness").value), charge: Number($("charge").value) });
const setup = () => ({
  scan: scan(), molecule: state.molecule, charges: state.charges, tip: $("tip").value, force: $("force").value,
  step: Number($("step").value), conditions: conditions(),
});
const heights = () => {
  const [nz, above] = [state.stack.shape[2], Number($("above").value)];
  const z = state.stack.heights ?? Array.from({ length: nz }, (_, k) => (nz - 1 - k) * Number($("step").value));
  return z.map((h) => above + h - z[nz - 1]);
};

/** Simulates the molecule as it is now; while one runs, only the last edit counts. */
async function simulate() {
  stale = Boolean(state.molecule?.atoms.length);
  if (running || simulating) return;
  simulating = true;
  while (stale && state.molecule?.atoms.length) {
    stale = false;
    const { stack, molecule: asked } = state;
    const [pixel, above] = [Math.max(...stack.size) / 64, heights()];
    try {
      const [answer, bytes] = await job("simulate", { ...setup(), pixel }, stack.data);
      if (state.stack !== stack || !state.molecule?.atoms.length) continue;
      if (state.molecule === asked) state.charges ??= answer.charges; // those of an element that was undone meanwhile are not its
      strips($("strips"), new Float32Array(bytes.buffer), answer.shape, answer.slices, answer.correlations, above);
      const mean = answer.correlations.reduce((a, b) => a + b, 0) / answer.correlations.length;
      const without = answer.uncharged ? ` Without charges: ${answer.uncharged}` : "";
      $("simulated").textContent = `Measured, simulated, difference; closest slice first. Mean correlation ${mean.toFixed(3)}.${without}`;
    } catch (error) {
      if (state.stack === stack) $("simulated").textContent = error.message;
    }
  }
  simulating = false;
}

async function fit() {
  const { stack } = state;
  const found = await work("fit", setup(), stack.data);
  if (!found || state.stack !== stack) return;
  const [{ conditions: best, correlations }] = found;
  const mean = correlations.reduce((a, b) => a + b, 0) / correlations.length;
  $("above").value = best.above_topmost.toFixed(2);
  $("stiffness").value = best.stiffness.toFixed(2);
  $("charge").value = best.charge.toFixed(3);
  tell(`Fitted: correlation ${mean.toFixed(3)}.`);
  simulate();
}

function tipChosen() {
  const tip = known.tips[$("tip").value];
  $("tipAbout").textContent = tip.about;
  $("chargeText").textContent = tip.charges === 1 ? "charge of the tip, e" : "charges of the molecule, times";
  $("charge").value = tip.charges === 1 ? 0.05 : tip.charges ? 1 : 0;
}

async function take(format) {
  const { molecule } = state;
  const { model, depth } = molecule.by ?? state; // sessions of before say it once for all
  const request = { format, molecule, scan: scan(), model, depth, formula: molecule.formula ?? null };
  const found = await work("export", request, state.stack.data);
  if (!found) return;
  if (format === "smiles") tell(new TextDecoder().decode(found[1]).trim());
  download(found[1], `${stem()}.${format === "smiles" ? "smi" : format}`);
}

const stem = () => state.stack.name.replace(/\.[^.]*$/, "");

function save() {
  const ids = ["formula", "tip", "force", "above", "step", "stiffness", "charge", "low", "high"];
  const settings = Object.fromEntries(ids.map((id) => [id, $(id).value]));
  download(packed({ ...state, settings }), `${stem()}.afmol.json`);
}

// Wiring

for (const { path, name } of known.stacks) $("stacks").append(new Option(name, path));
for (const name of known.models) $("model").append(new Option(name, name, name === known.model, name === known.model));
for (const name of Object.keys(known.tips)) $("tip").append(new Option(name, name, name === "co-charge", name === "co-charge"));
for (const name of Object.keys(known.forces)) $("force").append(new Option(name, name, false, name === "exponential"));
tipChosen();
$("above").value = known.forces[$("force").value];
$("files").onchange = (e) => {
  openFiles(e.target.files);
  e.target.value = ""; // so that the same file can be opened again
};
$("stacks").onchange = (e) => e.target.value && open({ path: e.target.value });
$("predict").onclick = () => predict();
$("refine").onclick = () => predict(true);
$("formula").onchange = () => state.stack && predict();
$("cancel").onclick = () => running?.abort();
$("slice").oninput = (e) => turn(Number(e.target.value));
$("low").oninput = $("high").oninput = image;
$("shown").onchange = atoms;
$("reverse").onclick = reverse;
$("undo").onclick = undo;
$("redo").onclick = redo;
$("add").onclick = () => setMode("add");
$("connect").onclick = () => setMode("connect");
$("remove").onclick = removeChosen;
$("save").onclick = save;
$("fit").onclick = fit;
$("tip").onchange = () => (tipChosen(), simulate());
$("force").onchange = () => (($("above").value = known.forces[$("force").value]), simulate());
for (const id of ["above", "step", "stiffness", "charge"]) $(id).onchange = simulate;
for (const button of document.querySelectorAll("[data-format]")) button.onclick = () => take(button.dataset.format);
document.addEventListener("keydown", key);
document.addEventListener("dragover", (e) => (e.preventDefault(), document.body.classList.add("over")));
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (e) => {
  e.preventDefault();
  document.body.classList.remove("over");
  openFiles(e.dataTransfer.files);
});
for (const button of document.querySelectorAll("[data-format], #save")) button.disabled = true;
document.body.dataset.ready = "yes";
if (known.stacks.length === 1) open({ path: known.stacks[0].path });
