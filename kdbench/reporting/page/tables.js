"use strict";
/* Tables that sort by a click on a heading, and what stands behind their numbers. */

function sortKey(cell) {
  if (cell === undefined) return null;
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  if (text === "" || text === "nan" || /^[–—]/.test(text)) return null;
  const number = /^(?:p\s*[<=]?\s*)?([+-]?\d+(?:\.\d+)?)/.exec(text);
  return number ? Number(number[1]) : text;
}

function compareKeys(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}

/* The heading line that has one cell for each column: the last. */
function headings(table) {
  return table.tHead.rows[table.tHead.rows.length - 1].cells;
}

function sortTable(table, column) {
  const heading = headings(table)[column];
  const first = column === 0 ? "ascending" : "descending";
  const second = column === 0 ? "descending" : "ascending";
  const next = { [first]: second, [second]: "none" }[heading.getAttribute("aria-sort")] || first;
  for (const each of headings(table)) each.setAttribute("aria-sort", each === heading ? next : "none");
  for (const body of table.tBodies) {
    const rows = Array.from(body.rows);
    if (next === "none") rows.sort((a, b) => a.dataset.place - b.dataset.place);
    else rows.sort((a, b) => compareKeys(sortKey(a.cells[column]), sortKey(b.cells[column]), next === "ascending" ? 1 : -1));
    body.append(...rows);
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const body of table.tBodies) Array.from(body.rows).forEach((row, place) => { row.dataset.place = place; });
  Array.from(headings(table)).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "row");
    button.addEventListener("click", () => sortTable(table, column));
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
  });
}

const DATA = JSON.parse(document.getElementById("data").textContent);

function add(parent, tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

function short(value, unit) {
  const steps = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [size, prefix] = steps.find(([least]) => value >= least) || [1, ""];
  return Number((value / size).toPrecision(3)) + " " + prefix + unit;
}

function duration(seconds) {
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([least]) => seconds >= 2 * least) || [1, "s"];
  return Number((seconds / size).toPrecision(3)) + " " + unit;
}

const CELL = "td[data-cell], td[data-detail]";
const detail = document.getElementById("detail");
let leaving = 0;

/* A cell of a paper's table says in lines what stands behind it, a run id behind two spaces. */
function describeLines(lines) {
  add(detail, "strong", lines[0]);
  for (const line of lines.slice(1)) {
    const [text, id] = line.split("  ");
    const element = add(detail, "div", id ? text + "  " : text);
    if (id) add(element, "code", id);
  }
}

function describe(table, number, worse) {
  const cell = table.cells[number];
  const pair = table.pairs[Math.floor(number / table.methods.length)];
  add(detail, "strong", table.methods[number % table.methods.length] + " on " + pair);
  const measured = cell.trials.filter((trial) => trial[2] !== null);
  const summary = ["n " + measured.length + " of " + cell.planned];
  if (cell.mean !== null) summary.unshift("mean " + cell.mean.toFixed(2));
  if (cell.sd !== null) summary.splice(1, 0, "sd " + cell.sd.toFixed(2));
  add(detail, "div", summary.join(", "));
  if (cell.published) add(detail, "div", "published " + cell.published);
  if (worse) add(detail, "div", worse);
  if (cell.macs !== null) add(detail, "div", short(cell.macs, "MAC") + ", " + duration(cell.seconds) + " on " + cell.devices.join(", "));
  for (const [trial, id, top1] of cell.trials.slice(0, 10)) {
    const line = add(detail, "div", "trial " + trial + ": " + (top1 === null ? "–" : top1.toFixed(2)) + "  ");
    add(line, "code", id);
  }
  if (cell.trials.length > 10) add(detail, "div", "and " + (cell.trials.length - 10) + " more trials");
  if (cell.note) add(detail, "div", cell.note);
}

function show(target) {
  clearTimeout(leaving);
  detail.replaceChildren();
  if (target.dataset.detail) describeLines(target.dataset.detail.split("\n"));
  else describe(DATA[target.closest("table").dataset.table], Number(target.dataset.cell), target.dataset.worse);
  detail.hidden = false;
  const place = target.getBoundingClientRect();
  const below = place.bottom + 6 + detail.offsetHeight <= window.innerHeight;
  detail.style.left = Math.max(8, Math.min(place.left, window.innerWidth - detail.offsetWidth - 8)) + "px";
  detail.style.top = (below ? place.bottom + 6 : Math.max(8, place.top - 6 - detail.offsetHeight)) + "px";
}

function hide() { detail.hidden = true; }
function hideSoon() { leaving = setTimeout(hide, 250); }

function step(cell, key) {
  const row = cell.parentElement;
  const moves = { ArrowLeft: cell.previousElementSibling, ArrowRight: cell.nextElementSibling };
  const other = { ArrowUp: row.previousElementSibling, ArrowDown: row.nextElementSibling }[key];
  return moves[key] || (other && other.cells[cell.cellIndex]) || null;
}

/* One cell of each table is in the tab order; the arrow keys lead to the others. */
function focusCell(table, cell) {
  for (const each of table.querySelectorAll('td[tabindex="0"]')) each.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
  show(cell);
}

for (const table of document.querySelectorAll("table.results, table.printed")) {
  const start = table.querySelector(CELL);
  if (start) start.tabIndex = 0;
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest(CELL);
    if (cell && event.pointerType === "mouse") show(cell);
  });
  table.addEventListener("pointerout", hideSoon);
  table.addEventListener("click", (event) => {
    const cell = event.target.closest(CELL);
    if (cell) focusCell(table, cell);
  });
  table.addEventListener("focusin", (event) => { if (event.target.matches(CELL)) show(event.target); });
  table.addEventListener("focusout", hideSoon);
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest(CELL);
    const next = cell && event.key.startsWith("Arrow") ? step(cell, event.key) : null;
    if (next === null || !next.matches(CELL)) return;
    event.preventDefault();
    focusCell(table, next);
  });
}
detail.addEventListener("pointerenter", () => clearTimeout(leaving));
detail.addEventListener("pointerleave", hideSoon);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
document.addEventListener("scroll", (event) => {
  if (event.target === detail || detail.hidden) return;
  if (document.activeElement.matches(CELL)) show(document.activeElement);
  else hide();
}, { passive: true, capture: true });
window.addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("#reproduce details")) each.open = true; });
