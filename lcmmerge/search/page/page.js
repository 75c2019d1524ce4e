// The page around the charts: images, the table, the cell in view, the comparison, keys.

const find = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const said = ({ prompt, seed }) => `${prompt}, seed ${seed}`;

const picture = (row, number) => h("img", {
  src: row.images[number], alt: `${row.name}: ${study.shown[number].prompt}`, "data-shown": number, decoding: "async",
});
const pictures = (row) => h("span", { class: "images" }, row.images.map((_, number) => picture(row, number)));
const tile = (row, place, caption) => h("button", { ...standing(row, place, spoken(row)), class: "tile" },
  caption && h("span", { class: "caption" }, caption),
  row.images.length ? pictures(row) : h("em", {}, row.fault), badge(row) && h("s", {}, badge(row)));

function contactSheet() {
  const isSheet = grid.columns.length > 0;
  const place = (index, x, y) => (index === null ? "" : tile(rows[index], [x, y], isSheet ? "" : rows[index].name));
  const titles = grid.columns.map((label) => h("th", { scope: "col" }, `${terms[accelerator]} ${label}`));
  const name = (y) => (isSheet && grid.rows[y] ? h("th", { scope: "row" }, grid.rows[y]) : "");
  const lines = grid.places.map((line, y) => h("tr", {}, name(y),
    line.map((index, x) => h("td", {}, place(index, x, y)))));
  return h("table", { "data-keys": "", "aria-label": "Contact sheet" },
    h("thead", {}, h("tr", {}, isSheet && grid.rows[0] ? h("td") : "", titles)), h("tbody", {}, lines));
}

// Buttons of which one is pressed; gives what presses the one of a number.
function choices(box, options, choose) {
  const buttons = options.map((option) => h("button", {}, option));
  const press = (number) => {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", at === number));
    choose(number);
  };
  buttons.forEach((button, number) => button.addEventListener("click", () => press(number)));
  box.replaceChildren(...buttons);
  return press;
}

function fillTable(table) {
  const figure = ({ name, better }) => ({
    title: better > 0 ? `${name}, higher is better` : name,
    key: (row) => row.estimates[name]?.[0],
    show: (row) => row.estimates[name] && h("span", { class: "number", title: interval(row.estimates[name]) },
      digits(row.estimates[name][0]), whisker(row.estimates[name], name)),
  });
  const columns = [
    { title: "drawing", key: (row) => row.name, show: (row) => [h("b", {}, badge(row)), row.name] },
    { title: "evals", key: (row) => row.evaluations, show: (row) => row.evaluations },
    ...figures.map(figure),
    { title: "remarks", key: (row) => remarks(row).join(", ") || undefined, show: (row) => remarks(row).join(", ") },
  ];
  const [drawing, ...numbers] = columns, body = h("tbody");
  const lines = rows.map((row) => h("tr", { "data-row": row.index },
    h("th", { scope: "row" }, h("button", {}, drawing.show(row))), numbers.map(({ show }) => h("td", {}, show(row)))));
  let sorted, way;
  const sort = (number) => {
    const { key } = columns[number];
    way = sorted === number ? -way : 1;
    sorted = number;
    const order = (one, two) => (one === undefined) - (two === undefined) || way * ((one > two) - (one < two));
    body.append(...[...rows].sort((one, two) => order(key(one), key(two))).map((row) => lines[row.index]));
    const direction = way > 0 ? "ascending" : "descending";
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === number ? direction : "none"));
  };
  const heads = columns.map(({ title }, number) => {
    const button = h("button", {}, title);
    button.addEventListener("click", () => sort(number));
    return h("th", { scope: "col" }, button);
  });
  table.append(h("thead", {}, h("tr", {}, heads)), body);
  sort(columns.findIndex(({ title }) => title === "score"));
}

function bake(row) {
  if (!row.command) return "";
  const button = h("button", { class: "copy" }, "Copy");
  const words = row.command.split(" ").map((word) => (word.startsWith("-") ? h("span", {}, word) : word));
  const code = h("code", { tabindex: 0, "aria-label": `The command that bakes ${row.name}` },
    words.map((word, number) => (number ? [" ", word] : word)));
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    await navigator.clipboard?.writeText(row.command).catch(() => {}); // where that is refused, the text is selected
    button.textContent = "Copied";
    find("said").textContent = `The command for ${row.name} is copied`;
  });
  return h("div", { class: "bake" }, h("p", {}, "To bake it", button), code);
}
const estimates = (row) => h("dl", { class: "estimates" },
  figures.filter(({ name }) => row.estimates[name]).map(({ name }) => h("div", {},
    h("dt", {}, name), h("dd", {}, interval(row.estimates[name])), whisker(row.estimates[name], name))));

// The drawing that is pointed at is lit everywhere and shown at the side; else the one that is picked, or the best.
let picked = null;
function see(row) {
  all("[data-row]").forEach((element) => element.classList.toggle("lit", row?.index === Number(element.dataset.row)));
  const shown = row ?? picked ?? rows[study.best], side = find("cell");
  if (side.dataset.shows === String(shown.index)) return;
  side.dataset.shows = shown.index;
  const marks = h("p", { class: "marks" }, remarks(shown).map((mark) => h("span", {}, mark)));
  side.replaceChildren(h("h2", {}, shown.name), marks, pictures(shown), estimates(shown), bake(shown));
}
function choose(row) {
  picked = row;
  const isPicked = (element) => picked?.index === Number(element.dataset.row);
  all("[data-row]").forEach((element) => element.classList.toggle("picked", isPicked(element)));
  all("[data-at]").forEach((place) => place.setAttribute("aria-pressed", isPicked(place)));
  find("said").textContent = picked ? `${picked.name} is picked; pick another to compare` : "";
}
// The second is compared with the first, and neither stays picked: a dialog's close event comes too late to see to that.
function pick(row) {
  const other = picked;
  if (row.images.length) choose(other ? null : row);
  if (row.images.length && other && other !== row) compare(other, row);
  see(row);
}

function compare(left, right) {
  const dialog = find("compare"), slider = dialog.querySelector("input"), stage = dialog.querySelector(".stage");
  const sides = Object.entries({ left, right });
  const show = choices(find("pairs"), study.shown.map(said), (number) => {
    for (const [side, row] of sides) {
      const { src, alt } = picture(row, number);
      Object.assign(stage.querySelector(`img.${side}`), { src, alt });
    }
  });
  sides.forEach(([side, row]) => { stage.querySelector(`span.${side}`).textContent = row.name; });
  dialog.querySelector(".sides").replaceChildren(...[left, right].map((row) =>
    h("div", { class: "card" }, h("h3", {}, row.name), bake(row), estimates(row))));
  slider.oninput = () => styled(stage, { "--at": `${slider.value}%` });
  slider.value = 50;
  slider.oninput();
  show(0);
  dialog.showModal();
  slider.focus();
}
find("compare").addEventListener("click", ({ target }) => {
  if (target.matches("dialog, .close")) find("compare").close();
});

// One Tab stop for each map, plot and sheet; an arrow key goes to the next place in its direction that is taken.
function reachable(box) {
  const places = all("[data-at]", box);
  if (places.length && !places.some((place) => place.tabIndex === 0)) places[0].setAttribute("tabindex", 0);
}
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function move(from, [dx, dy]) {
  const at = (place) => place.dataset.at.split(",").map(Number), [x, y] = at(from);
  const ahead = all("[data-at]", from.closest("[data-keys]")).map((place) => [place, at(place)])
    .filter(([, [px, py]]) => (dx ? py === y && (px - x) * dx > 0 : px === x && (py - y) * dy > 0))
    .sort(([, one], [, two]) => (one[0] - two[0]) * dx + (one[1] - two[1]) * dy);
  if (!ahead.length) return;
  from.setAttribute("tabindex", -1);
  ahead[0][0].setAttribute("tabindex", 0);
  ahead[0][0].focus();
}
const rowOf = (event) => {
  const element = event.target.closest?.("[data-row]");
  return element ? rows[element.dataset.row] : null;
};
document.addEventListener("keydown", (event) => {
  const isPlace = event.target.dataset?.at !== undefined;
  if (event.key === "Escape" && !find("compare").open) choose(null);
  if (isPlace && event.key === "Enter" && event.target.matches("g")) pick(rowOf(event)); // a button clicks by itself
  if (isPlace && ARROWS[event.key]) {
    event.preventDefault();
    move(event.target, ARROWS[event.key]);
  }
});
document.addEventListener("pointerover", (event) => see(rowOf(event)));
document.addEventListener("focusin", (event) => see(rowOf(event)));
document.addEventListener("click", (event) => { if (rowOf(event)) pick(rowOf(event)); });

const card = (title, about, content) =>
  h("figure", { class: "card" }, h("figcaption", {}, h("h3", {}, title), h("p", {}, about)), content);
const cards = figures.map((figure) => {
  const about = `${figure.about}; ${figure.better > 0 ? "higher" : "lower"} is better`;
  return card(figure.name, about, mapsOf(figure));
});
const aboutFront = "No cell is better in both than those on the line. DPM-Solver++ (squares) is flattered by "
  + "the teacher’s own noise, which it starts from; the verdict goes by other noise.";
const frontCard = card("Pareto front", aboutFront, front());
if (isGrid || study.varied.length < 2) cards.splice(1, 0, frontCard);
else cards.unshift(card("Where the cells are", "coloured by their score", plane()), frontCard);
find("maps").append(...cards);
rows.filter((row) => row.kind !== "cell" && row.images.length).forEach((row, number) =>
  find("beside").append(tile(row, [number, 0], row.name)));
find("sheet").append(contactSheet());
choices(find("prompts"), ["all", ...study.shown.map(said)], (number) => {
  const isHidden = (image) => number > 0 && Number(image.dataset.shown) !== number - 1;
  all("#beside img, #sheet img").forEach((image) => { image.hidden = isHidden(image); });
})(0);
fillTable(find("drawings"));
all("[data-keys]").forEach(reachable);
see(null);
