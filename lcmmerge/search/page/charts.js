"use strict";
// The study's numbers, and what is drawn of them: heat maps, plots with error bars, whiskers.
// Whatever comes from outside is written as text (append, setAttribute), never as markup.

const study = JSON.parse(document.getElementById("study").textContent);
const { rows, figures, grid, terms, accelerator } = study;
const is = (row, mark) => row.marks.includes(mark);
rows.forEach((row, index) => { row.index = index; });
const cells = rows.filter((row) => row.compared);

// h("td", { class: "x" }, child, "text"): an element; an attribute that is false is left out.
const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) if (value !== false) element.setAttribute(name, value);
  element.append(...children.flat(2).filter((child) => child != null && child !== ""));
  return element;
};
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const styled = (element, properties) => {
  for (const [name, value] of Object.entries(properties)) element.style.setProperty(name, value);
  return element;
};

const digits = (value) => String(Number(value.toPrecision(3))).replace("-", "−");
const interval = ([value, low, high]) => `${digits(value)} (${digits(low)} … ${digits(high)})`;
const span = (values) => [Math.min(...values), Math.max(...values)];
const share = (value, [low, high]) => (high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5);

// Figure → the span of the cells' values and of their intervals, and how many decimals tell them apart.
const scales = Object.fromEntries(figures.map(({ name, better }) => {
  const known = cells.map((row) => row.estimates[name]).filter(Boolean);
  const values = span(known.map(([value]) => value));
  const decimals = 2 - Math.floor(Math.log10(values[1] - values[0] || Math.abs(values[0]) || 1));
  return [name, { better, values, bounds: span(known.flat()), decimals: Math.min(6, Math.max(0, decimals)) }];
}));
const rounded = (value, name) => (value.toFixed(scales[name].decimals).replace(/^-(?=[0.]*$)/, "").replace("-", "−"));

// Viridis, of which every step looks as large as another, also to the colour-blind; the brightest is the best.
const VIRIDIS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
  .split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
function paint(element, row, name) {
  const part = share(row.estimates[name][0], scales[name].values);
  const at = 10 * (scales[name].better > 0 ? part : 1 - part), step = Math.min(9, Math.floor(at));
  const mixed = VIRIDIS[step].map((from, channel) => from + (VIRIDIS[step + 1][channel] - from) * (at - step));
  const isBright = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] > 128;
  return styled(element, { "--fill": `rgb(${mixed.join(" ")})`, "--on": isBright ? "#0b0b12" : "#fff" });
}

// Nothing where the value is off the cells' scale.
function whisker([value, low, high], name) {
  const { bounds } = scales[name];
  if (value < bounds[0] || value > bounds[1]) return "";
  const at = (number) => `${100 * share(number, bounds)}%`;
  const places = { "--low": at(low), "--high": at(high), "--at": at(value) };
  return styled(h("i", { class: "whisker", "aria-hidden": "true" }), places);
}

const badge = (row) =>
  (row.fault ? "×" : is(row, "best") ? "★" : is(row, "tie") ? "≈" : "") + (is(row, "front") ? "◆" : "");
const remarks = (row) => [...row.marks, row.fault].filter(Boolean);
const spoken = (row, name) => {
  const found = name && row.estimates[name];
  return [row.name, ...(found ? [`${name} ${interval(found)}`] : []), ...remarks(row)].join(", ");
};
// Of whatever stands for a drawing at a place of its map: it lights up with the others, and keys find it.
const standing = (row, place, label) =>
  ({ "data-row": row.index, "data-at": place.join(), tabindex: is(row, "best") ? 0 : -1, "aria-label": label });

function heatMap(name) {
  const others = terms.filter((_, number) => number !== accelerator);
  const short = (label) => (others.length === 1 ? label.split(" ").pop() : label);
  const cell = (index, x, y) => {
    if (index === null) return h("td");
    const row = rows[index], found = row.estimates[name], isOff = !row.compared || !found;
    const button = h("button", { ...standing(row, [x, y], spoken(row, name)), class: isOff ? "off" : "on" },
      h("b", {}, found ? rounded(found[0], name) : "–"), found && whisker(found, name), h("s", {}, badge(row)));
    return h("td", {}, isOff ? button : paint(button, row, name));
  };
  const head = h("tr", {}, h("td"), grid.columns.map((label) => h("th", { scope: "col" }, label)));
  const lines = grid.places.map((line, y) => h("tr", {},
    h("th", { scope: "row" }, short(grid.rows[y])), line.map((index, x) => cell(index, x, y))));
  return h("table", { class: others.length > 1 ? "map long" : "map", "data-keys": "", "aria-label": name },
    h("caption", {}, `${terms[accelerator]} λ →`, h("span", {}, `${others.join(", ")} λ ↓`)),
    h("thead", {}, head), h("tbody", {}, lines));
}

function ticks([low, high], count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const first = Math.ceil(low / step), number = Math.floor(high / step) - first + 1;
  return Array.from({ length: number }, (_, at) => Number(((first + at) * step).toPrecision(6)));
}

// Points with error bars, drawn anew whenever the width changes. ``x``, ``y``: of a row, [value, low, high];
// ``line``: rows that a staircase joins; ``tint``: the figure that colours cells, whose whole bars are seen then.
function scatter({ title, points, x, y, xLabel, yLabel, line = [], tint }) {
  const box = h("div", { class: "plot", "data-keys": "" });
  const scale = (of) => {
    const known = points.filter((row) => row.compared).map(of);
    const [low, high] = span(tint ? known.flat() : known.map(([value]) => value));
    const pad = 0.08 * (high - low || Math.abs(low) || 1);
    return [low - pad, high + pad];
  };
  const across = scale(x), up = scale(y), ordered = [...points].sort((one, other) => x(one)[0] - x(other)[0]);

  const draw = (whole) => {
    const tall = Math.round(Math.min(400, Math.max(250, 0.7 * whole))), left = 46, right = whole - 14;
    const top = 28, bottom = tall - 42;
    const sx = (value) => left + share(value, across) * (right - left);
    const sy = (value) => bottom - share(value, up) * (bottom - top);
    const point = (row, number) => {
      const isRival = row.kind !== "cell", kind = isRival ? "rival" : row.compared ? "cell" : "off";
      const [px, ...wide] = x(row).map(sx), [py, ...high] = y(row).map(sy);
      const group = svg("g", {
        ...standing(row, [number, 0], spoken(row)), role: "button", class: is(row, "front") ? `${kind} front` : kind,
      },
        svg("title", {}, spoken(row)),
        svg("line", { x1: wide[0], x2: wide[1], y1: py, y2: py }),
        svg("line", { x1: px, x2: px, y1: high[0], y2: high[1] }),
        isRival ? svg("rect", { x: px - 5.5, y: py - 5.5, width: 11, height: 11 })
          : svg("circle", { cx: px, cy: py, r: is(row, "best") ? 8 : 6 }));
      return tint && kind === "cell" ? paint(group, row, tint) : group;
    };
    const rules = ticks(up, 5).map((value) => [
      svg("line", { class: "rule", x1: left, x2: right, y1: sy(value), y2: sy(value) }),
      svg("text", { class: "end", x: left - 8, y: sy(value) + 4 }, digits(value))]);
    const feet = ticks(across, whole / 70).map((value) =>
      svg("text", { class: "middle", x: sx(value), y: bottom + 18 }, digits(value)));
    const corners = line.map((row) => [sx(x(row)[0]), sy(y(row)[0])]);
    const path = corners.map(([px, py], number) => (number ? `H${px}V${py}` : `M${px} ${py}`));
    box.replaceChildren(svg("svg", { width: whole, height: tall, role: "group", "aria-label": title },
      rules, feet, svg("text", { class: "end name", x: right, y: tall - 5 }, `${xLabel} →`),
      svg("text", { class: "name", x: left, y: 12 }, `↑ ${yLabel}`),
      svg("path", { class: "steps", d: path.join("") }), ordered.map(point)));
    reachable(box);
  };
  let before = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width && contentRect.width !== before) draw(before = contentRect.width);
  }).observe(box);
  return box;
}

// A heat map of a grid; of one λ, or of cells that are no grid, a plot over each λ.
const isGrid = grid.columns.length > 1 && grid.rows.length > 1;
const strength = (term) => (row) => [row.lambda[term], row.lambda[term], row.lambda[term]];
function mapsOf({ name }) {
  if (isGrid) return heatMap(name);
  const points = rows.filter((row) => row.kind === "cell" && row.estimates[name]);
  return study.varied.map((term) => scatter({
    title: `${name} by ${terms[term]}`, points, tint: name, xLabel: `${terms[term]} λ`, x: strength(term),
    yLabel: name, y: (row) => row.estimates[name],
  }));
}

// Where cells are that are no grid: over two λs.
function plane() {
  const other = study.varied.find((term) => term !== accelerator);
  return scatter({
    title: "cells", points: rows.filter((row) => row.kind === "cell" && row.estimates.score), tint: "score",
    xLabel: `${terms[accelerator]} λ`, x: strength(accelerator), yLabel: `${terms[other]} λ`, y: strength(other),
  });
}

function front() {
  const of = (name) => (row) => row.estimates[name];
  const line = rows.filter((row) => is(row, "front")).sort((one, two) => of("score")(one)[0] - of("score")(two)[0]);
  const points = rows.filter((row) => of("score")(row) && of("style")(row));
  return scatter({
    title: "Pareto front", points, line, xLabel: "score", x: of("score"), yLabel: "style", y: of("style"),
  });
}
