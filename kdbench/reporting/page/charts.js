"use strict";
/* Learning curves, and accuracy against cost, of the table and pair that are chosen. Uses DATA, add, short, duration. */

const NAMESPACE = "http://www.w3.org/2000/svg";
const picked = { table: 0, pair: 0, methods: new Set() };
const pick = (name) => document.getElementById("pick-" + name);
/* A method's colour, dashes in widths of the line, and marker are those of `kdbench plot`. */
const WIDTH = 2;
const styleOf = (index) => DATA[picked.table].styles[index];
const colour = (index) => "var(--" + styleOf(index)[0] + ")";
const dashes = (index) => styleOf(index)[1].map((length) => WIDTH * length).join(" ") || "none";
const PLUS = [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]];
const corners = (count, radius, inner = radius) => Array.from({ length: count }, (_, at) => {
  const angle = (2 * at / count - 0.5) * Math.PI, r = at % 2 ? inner : radius;
  return [r * Math.cos(angle), r * Math.sin(angle)];
});
const SHAPES = {
  o: corners(24, 1),
  s: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
  D: corners(4, 1.3),
  "^": [[0, -1.2], [1.15, 0.9], [-1.15, 0.9]],
  v: [[0, 1.2], [1.15, -0.9], [-1.15, -0.9]],
  P: PLUS,
  X: PLUS.map(([x, y]) => [(x - y) * Math.SQRT1_2, (x + y) * Math.SQRT1_2]),
  p: corners(5, 1.2),
  h: corners(6, 1.2),
  "*": corners(10, 1.4, 0.6),
};

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/* The mark of a method around a point, open where its line has dashes. */
function mark(parent, index, x, y, r, attributes = {}) {
  const [, gaps, marker] = styleOf(index);
  const points = SHAPES[marker].map(([dx, dy]) => (x + r * dx).toFixed(1) + "," + (y + r * dy).toFixed(1));
  const fill = gaps.length ? "var(--ground)" : colour(index);
  return draw(parent, "polygon", { stroke: colour(index), fill, ...attributes, class: ("mark " + (attributes.class || "")).trim(), points: points.join(" ") });
}

/* A method's line and mark, before its name. */
function swatch(parent, index) {
  const svg = draw(parent, "svg", { class: "swatch", viewBox: "0 0 30 10", "aria-hidden": "true" });
  draw(svg, "line", { x1: 0, x2: 30, y1: 5, y2: 5, "stroke-width": WIDTH, stroke: colour(index), "stroke-dasharray": dashes(index) });
  mark(svg, index, 15, 5, 3.6);
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((each) => each * power >= rough) || 10);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

/* The drawing keeps its size in a viewBox, so that paper of another width shows all of it. */
function size(svg) {
  const found = [svg.clientWidth || 800, svg.clientHeight || 360];
  svg.setAttribute("viewBox", "0 0 " + found.join(" "));
  return found;
}

/* A frame with axes; returns the functions from values to places. Ranges without extent are widened. */
function frame(svg, xs, ys, labels) {
  svg.replaceChildren();
  const [width, height] = size(svg);
  const edge = { left: 46, right: labels.right || 12, top: 22, bottom: 40 };
  const widen = ([low, high], share) => { const by = high > low ? (high - low) * share : Math.abs(high) * 0.05 || 1; return [low - by, high + by]; };
  const [x0, x1] = widen(xs, labels.inner || 0);
  const [y0, y1] = widen(ys, 0.05);
  const x = (value) => edge.left + (value - x0) / (x1 - x0) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - (value - y0) / (y1 - y0) * (height - edge.top - edge.bottom);
  const wide = width > 600;
  for (const value of ticks(y0, y1, 6)) {
    draw(svg, "line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) });
    draw(svg, "text", { class: "soft", x: edge.left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value));
  }
  for (const value of ticks(x0, x1, wide ? 8 : 4)) {
    if (labels.whole && !Number.isInteger(value)) continue;
    draw(svg, "line", { class: "rule", x1: x(value), x2: x(value), y1: height - edge.bottom, y2: height - edge.bottom + 4 });
    draw(svg, "text", { class: "soft", x: x(value), y: height - edge.bottom + 17, "text-anchor": "middle" }, labels.format(value));
  }
  draw(svg, "line", { class: "rule", x1: edge.left, x2: width - edge.right, y1: height - edge.bottom, y2: height - edge.bottom });
  draw(svg, "text", { class: "soft", x: (edge.left + width - edge.right) / 2, y: height - 6, "text-anchor": "middle" }, labels.x);
  draw(svg, "text", { class: "soft", x: 4, y: 12 }, labels.y);
  return { x, y, right: width - edge.right, bottom: height - edge.bottom, top: edge.top };
}

function nothing(svg, text) {
  svg.replaceChildren();
  const [width, height] = size(svg);
  draw(svg, "text", { class: "soft", x: width / 2, y: height / 2, "text-anchor": "middle" }, text);
}

const range = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
const cellOf = (table, pair, method) => table.cells[pair * table.methods.length + method];

/* What curves show: the text at the axis, the order of values from the best, and how one is written. */
const percent = (value) => value.toFixed(2);
const QUANTITIES = {
  top1: { label: "top-1 test accuracy, %", order: (a, b) => b - a, format: percent },
  train_error: { label: "training error, %", order: (a, b) => a - b, format: percent },
  loss: { label: "training loss", order: (a, b) => a - b, format: String },
};

function chosenCurves() {
  const table = DATA[picked.table], quantity = pick("quantity").value, curves = [];
  table.methods.forEach((name, index) => {
    const cell = cellOf(table, picked.pair, index);
    if (cell && cell[quantity] && picked.methods.has(index)) curves.push({ name, index, ...cell[quantity] });
  });
  if (pick("epochs").value === "all") return curves;
  const last = Math.max(...curves.map((curve) => curve.epochs.at(-1)));
  return curves.map((curve) => {
    const from = curve.epochs.findIndex((epoch) => epoch >= 0.75 * last);
    const cut = (values) => (from < 0 ? [] : values.slice(from));
    return { ...curve, epochs: cut(curve.epochs), mean: cut(curve.mean), low: cut(curve.low), high: cut(curve.high) };
  }).filter((curve) => curve.epochs.length > 0);
}

/* Curves part at the end: it is drawn first where it holds a few tests. */
function endIsWorthALook() {
  const epochs = DATA.flatMap((table) => table.cells).map((cell) => (cell && cell.top1 ? cell.top1.epochs : []));
  return epochs.some((found) => found.filter((epoch) => epoch >= 0.75 * found.at(-1)).length >= 3);
}

let readAt = null;

function drawCurves() {
  const svg = document.getElementById("curves"), curves = chosenCurves(), quantity = QUANTITIES[pick("quantity").value];
  document.getElementById("curves-values").replaceChildren();
  svg.onpointermove = svg.onkeydown = null;
  if (curves.length === 0) return nothing(svg, "No epochs to show.");
  const values = curves.flatMap((curve) => [...curve.mean, ...curve.low, ...curve.high]);
  const epochs = [...new Set(curves.flatMap((curve) => curve.epochs))].sort((a, b) => a - b);
  const { x, y, top, bottom } = frame(svg, range(epochs), range(values), {
    x: "epoch", y: quantity.label, format: String, whole: true,
  });
  const path = (at, list) => at.map((epoch, index) => x(epoch).toFixed(1) + "," + y(list[index]).toFixed(1));
  for (const curve of curves) {
    if (curve.low.length > 0) {
      const points = [...path(curve.epochs, curve.high), ...path(curve.epochs, curve.low).reverse()].join(" ");
      draw(svg, "polygon", { class: "band", points, fill: colour(curve.index) });
    }
  }
  for (const curve of curves) {
    const style = { stroke: colour(curve.index), "stroke-width": WIDTH, "stroke-dasharray": dashes(curve.index) };
    draw(svg, "polyline", { class: "line", points: path(curve.epochs, curve.mean).join(" "), ...style });
    const every = Math.ceil(curve.epochs.length / 6);
    curve.epochs.forEach((epoch, at) => {
      if ((at + curve.index) % every === 0) mark(svg, curve.index, x(epoch), y(curve.mean[at]), 3.6);
    });
  }
  const cursor = draw(svg, "line", { class: "rule", y1: top, y2: bottom, visibility: "hidden" });
  const read = (place) => {
    readAt = Math.max(0, Math.min(epochs.length - 1, place));
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(epochs[readAt]));
    readValues(curves, epochs[readAt], quantity);
  };
  svg.onpointermove = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    read(epochs.reduce((best, epoch, index) => (Math.abs(x(epoch) - at) < Math.abs(x(epochs[best]) - at) ? index : best), 0));
  };
  svg.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -epochs.length, End: epochs.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    read((readAt === null ? epochs.length - 1 : readAt) + by);
  };
  readValues(curves, epochs.at(-1), quantity);
}

function readValues(curves, epoch, quantity) {
  const list = document.getElementById("curves-values");
  list.replaceChildren();
  add(list, "span", "epoch " + epoch + ":");
  const there = curves.map((curve) => [curve, curve.mean[curve.epochs.indexOf(epoch)]]).filter(([, value]) => value !== undefined);
  there.sort(([, a], [, b]) => quantity.order(a, b));
  for (const [curve, value] of there) {
    const entry = add(list, "span", "");
    swatch(entry, curve.index);
    add(entry, "span", curve.name + " " + quantity.format(value));
  }
}

function scatterPoints(table, cost) {
  const points = [];
  table.pairs.forEach((pair, at) => table.methods.forEach((name, index) => {
    const cell = cellOf(table, at, index);
    if (cell && cell.mean !== null && cell[cost] && picked.methods.has(index)) points.push({ pair, at, name, index, cell, cost: cell[cost] });
  }));
  return points;
}

function drawScatter() {
  const svg = document.getElementById("scatter"), cost = pick("cost").value;
  const points = scatterPoints(DATA[picked.table], cost);
  if (points.length === 0) return nothing(svg, "No measured cost to show.");
  const spread = (point) => [point.cell.mean - (point.cell.sd || 0), point.cell.mean + (point.cell.sd || 0)];
  const format = cost === "macs" ? (value) => (value > 0 ? short(value, "") : "0") : (value) => (value > 0 ? duration(value) : "0");
  const ends = range(points.map((point) => point.cost));
  const { x, y } = frame(svg, ends, range(points.flatMap(spread)), {
    x: cost === "macs" ? "multiply-accumulates of a run" : "time of a run", y: "top-1 test accuracy, %", format, right: 80, inner: 0.12,
  });
  for (const point of points) point.x = x(point.cost);
  for (const point of points.filter((each) => each.at !== picked.pair)) dot(svg, point, y, format, "faint");
  for (const group of sideBySide(points.filter((point) => point.at === picked.pair))) {
    for (const point of group) {
      const [low, high] = spread(point);
      draw(svg, "line", { x1: point.x, x2: point.x, y1: y(low), y2: y(high), stroke: colour(point.index), "stroke-width": 1.5 });
      dot(svg, point, y, format, "");
    }
    label(svg, group, y);
  }
}

/* Groups of points at nearly the same cost, moved apart so that all of them can be seen. */
function sideBySide(points) {
  const groups = [];
  for (const point of points.sort((a, b) => a.x - b.x || b.cell.mean - a.cell.mean)) {
    const last = groups.at(-1);
    if (last && point.x - last[0].x < 12) last.push(point);
    else groups.push([point]);
  }
  for (const group of groups) {
    const gap = Math.min(11, 90 / group.length), middle = group[0].x;
    group.forEach((point, index) => { point.x = middle + gap * (index - (group.length - 1) / 2); });
  }
  return groups;
}

/* Names to the right of a group, each at the height of its point or as near below as there is room. */
function label(svg, group, y) {
  const right = Math.max(...group.map((point) => point.x)) + 20;
  let above = -Infinity;
  for (const point of [...group].sort((a, b) => b.cell.mean - a.cell.mean)) {
    above = Math.max(y(point.cell.mean) + 4, above + 13);
    draw(svg, "line", { class: "grid", x1: point.x + 6, x2: right - 3, y1: y(point.cell.mean), y2: above - 4 });
    draw(svg, "text", { x: right, y: above }, point.name);
  }
}

function dot(svg, point, y, format, style) {
  const text = point.name + " on " + point.pair + ": " + point.cell.mean.toFixed(2) + " %, " + format(point.cost) + " on " + point.cell.devices.join(", ");
  const focus = style ? {} : { tabindex: 0, role: "img", "aria-label": text };
  draw(mark(svg, point.index, point.x, y(point.cell.mean), style ? 4 : 5, { class: style, ...focus }), "title", {}, text);
}

function redraw() {
  drawCurves();
  drawScatter();
}

function fill(select, texts, chosen) {
  select.replaceChildren();
  texts.forEach((text, index) => { add(select, "option", text).value = index; });
  select.value = chosen;
  select.closest("label").hidden = texts.length < 2;
}

/* At first eight are drawn, the paper's or suite's own methods before the others, the best first; and the plain student. */
function chooseMethods() {
  const table = DATA[picked.table];
  const mean = (index) => (cellOf(table, picked.pair, index) || {}).mean ?? -1;
  const own = (index) => table.own.includes(index);
  const order = table.methods.map((_, index) => index).sort((a, b) => own(b) - own(a) || mean(b) - mean(a));
  picked.methods = new Set([...order.slice(0, 8), ...order.filter((index) => table.methods[index] === "ce")]);
  const box = pick("methods");
  box.replaceChildren(box.querySelector("legend"));
  table.methods.forEach((name, index) => {
    const label = add(box, "label", "");
    const check = add(label, "input", "");
    check.type = "checkbox";
    check.checked = picked.methods.has(index);
    check.addEventListener("change", () => { picked.methods[check.checked ? "add" : "delete"](index); redraw(); });
    swatch(label, index);
    add(label, "span", name);
  });
  for (const [text, all] of [["All", true], ["None", false]]) {
    const button = add(box, "button", text);
    button.type = "button";
    button.addEventListener("click", () => {
      for (const check of box.querySelectorAll("input")) if (check.checked !== all) check.click();
    });
  }
}

function choosePair(pair) {
  picked.pair = pair;
  readAt = null;
  chooseMethods();
  redraw();
}

function chooseTable(table) {
  picked.table = table;
  fill(pick("pair"), DATA[table].pairs, 0);
  choosePair(0);
}

if (DATA.length > 0) {
  document.getElementById("controls").hidden = false;
  fill(pick("table"), DATA.map((table) => table.title), 0);
  pick("table").addEventListener("change", (event) => chooseTable(Number(event.target.value)));
  pick("pair").addEventListener("change", (event) => choosePair(Number(event.target.value)));
  const cells = DATA.flatMap((table) => table.cells).filter(Boolean);
  for (const option of [...pick("quantity").options]) if (!cells.some((cell) => cell[option.value])) option.remove();
  for (const name of ["quantity", "epochs"]) pick(name).addEventListener("change", drawCurves);
  pick("cost").addEventListener("change", drawScatter);
  pick("epochs").value = endIsWorthALook() ? "end" : "all";
  chooseTable(0);
  new ResizeObserver(redraw).observe(document.getElementById("explore"));
  window.addEventListener("beforeprint", redraw);
}
