"use strict";

const PAGE = 1000; // tasks that one request reads
const SHOWN = 50; // rows of the table at a time
const EVERY = 2000; // milliseconds between two looks at the load
const LIKELY = 0.01; // probability of the tasks that are named beside the one that answered

const byId = (id) => document.getElementById(id);
const number = (value, digits = 3) => value.toLocaleString("en", { maximumFractionDigits: digits });
const percent = (share) => `${number(100 * share, share > 0.999 || share < 0.01 ? 2 : 1)} %`;
const counted = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
const moment = (iso) => iso.slice(0, 16).replace("T", " ");

/** An element with its properties and children; a text is only ever a text. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const name = (text) => make("bdi", {}, text);

/** What an operation answers. Throws an error that says in words why there is no answer. */
async function asked(path, { body, signal } = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("The server cannot be reached. It may be closing or starting; try again in a moment.");
  }
  const told = await response.json().catch(() => null);
  if (response.ok && told) return told;
  if (response.status === 401) needKey(key);
  throw new Error(told?.error?.message ?? `The server answered with status ${response.status}.`);
}

/** All rows of a listing, page after page; the column `last` names a row. */
async function everything(path, last, tell = () => {}) {
  const rows = [];
  for (;;) {
    const after = rows.length ? { after: rows.at(-1)[last] } : {};
    const page = await asked(`${path}${path.includes("?") ? "&" : "?"}${new URLSearchParams({ limit: PAGE, ...after })}`);
    rows.push(...page);
    if (page.length < PAGE) return rows;
    tell(rows.length);
  }
}

// Keys

function needKey(before) {
  if (byId("keys").hidden) byId("why").textContent = before ? "The server knows no such key." : "The server asks for a key.";
  byId("keys").hidden = false;
  if (document.activeElement === document.body) byId("key").focus();
}

byId("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("key").value);
  byId("key").value = "";
  byId("keys").hidden = true;
  byId("text").focus();
  look();
});

// A text and its answer

let asking = new AbortController();

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  asking.abort(); // of two questions the later one is answered
  const { signal } = (asking = new AbortController());
  const [text, second, task] = ["text", "second", "task"].map((id) => byId(id).value);
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const row = { text: second ? [text, second] : text, task: task || null };
    const { predictions } = await asked("/v1/predict", { body: { rows: [row], at_least: LIKELY }, signal });
    byId("answer").replaceChildren(...said(predictions[0]));
  } catch (error) {
    if (!signal.aborted) byId("answer").replaceChildren(make("p", { className: "wrong" }, error.message));
  }
  if (!signal.aborted) byId("answer").removeAttribute("aria-busy");
});

for (const id of ["text", "second"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("ask").requestSubmit();
  });
}

function said({ task, label, score, routed, confidence, abstained, delta, possible, error }) {
  if (abstained) {
    const why = `No answer: the text is like those of none of the tasks.${possible.length ? " The nearest are:" : ""}`;
    return [make("p", {}, why), nearest(possible)];
  }
  const sure = routed ? ` chosen by the router with ${percent(confidence)}` : " as you chose";
  const by = make("p", {}, "by ", name(task), `,${sure}; delta `, name(delta));
  if (error) return [make("p", { className: "wrong" }, error), by];
  const likely = score === null ? "" : make("span", { className: "note" }, ` with probability ${percent(score)}`);
  const answer = make("p", { className: "label" }, name(typeof label === "number" ? number(label, 4) : label), likely);
  const others = possible.filter((own) => own.task !== task);
  return [answer, by, ...(others.length ? [make("p", { className: "note" }, "It may also belong to:"), nearest(others)] : [])];
}

function nearest(possible) {
  const items = possible.map(({ task, confidence, label }) => {
    const answer = label === null ? [] : [": ", name(typeof label === "number" ? number(label, 4) : label)];
    const item = make("li", {}, make("span", {}, name(task), ...answer), make("span", {}, percent(confidence)));
    item.style.setProperty("--share", confidence);
    return item;
  });
  return make("ul", { className: "nearest" }, ...items);
}

// Load

let looking = false;
let served = null; // how many tasks were served when they were listed

/** Look at the load, and again after a while; nobody looks at a page that is not visible, or without a key. */
async function look() {
  if (looking || document.visibilityState !== "visible" || !byId("keys").hidden) return;
  looking = true;
  try {
    const load = await asked("/v1/load");
    byId("unreached").textContent = "";
    show(load);
    if (load.tasks !== served) {
      served = load.tasks;
      list();
    }
  } catch (error) {
    byId("unreached").textContent = error.message;
  }
  looking = false;
  setTimeout(look, EVERY);
}

document.addEventListener("visibilitychange", look);

function show(load) {
  const told = {
    backbone: `of backbone ${load.backbone} `,
    rate: number(load.inputs_per_second, load.inputs_per_second < 10 ? 1 : 0),
    waiting: number(load.waiting),
    wait: load.wait_seconds < 0.05 ? "one more would not wait" : `one more would wait ${number(load.wait_seconds, 1)} s`,
    tasks: number(load.tasks),
    since: `running for ${lasted(load.seconds)}`,
    device: number(load.on_device),
    memory: `${number(load.in_memory)} in memory`,
    peak: number(Math.max(...load.inputs_by_second)),
  };
  for (const [id, text] of Object.entries(told)) byId(id).textContent = text;
  const highest = Math.max(1, ...load.inputs_by_second);
  const curve = load.inputs_by_second.map((n, i) => `${i} ${(23 - (22 * n) / highest).toFixed(2)}`).join(" L");
  byId("spark").children[0].setAttribute("d", `M0 24 L${curve} L59 24 Z`);
  byId("spark").children[1].setAttribute("d", `M${curve}`);
}

function lasted(seconds) {
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, size]) => seconds >= size) ?? units.at(-1);
  return counted(Math.floor(seconds / size), unit);
}

// Tasks

let tasks = [];
let first = 0; // of the rows that are shown
const opened = new Map(); // the row below a task's, by its name

/** List the tasks that are served, to choose from, and all that are registered. */
async function list() {
  try {
    const [, ...models] = (await asked("/v1/models")).data; // the first is the backbone
    const chosen = byId("task").value;
    byId("task").replaceChildren(byId("task").options[0], ...models.map(({ id }) => make("option", { value: id }, id)));
    byId("task").value = models.some(({ id }) => id === chosen) ? chosen : "";
    tasks = await everything("/v1/tasks", "task", (n) => (byId("count").textContent = `${number(n)} tasks are read …`));
    opened.clear();
    draw();
  } catch (error) {
    served = null; // list them with the next look
    byId("count").textContent = error.message;
  }
}

function draw() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  const found = tasks.filter((own) => words.every((word) => `${own.task} ${own.kind} ${own.metric}`.toLowerCase().includes(word)));
  first = Math.min(first, Math.floor(Math.max(found.length - 1, 0) / SHOWN) * SHOWN);
  const shown = found.slice(first, first + SHOWN);
  const held = document.activeElement?.dataset.task;
  byId("rows").replaceChildren(...shown.flatMap((own) => [row(own), ...(opened.has(own.task) ? [opened.get(own.task)] : [])]));
  if (held) [...byId("rows").querySelectorAll("button[data-task]")].find((button) => button.dataset.task === held)?.focus();
  const whole = found.length === tasks.length ? counted(tasks.length, "task") : `${number(found.length)} of ${counted(tasks.length, "task")}`;
  byId("count").textContent = found.length > SHOWN ? `${whole}, ${number(first + 1)} to ${number(first + shown.length)} shown` : whole;
  byId("back").disabled = first === 0;
  byId("on").disabled = first + SHOWN >= found.length;
  byId("back").parentElement.hidden = found.length <= SHOWN;
}

const cell = (content, className = "") => make("td", { className }, content);
const fraction = (score) => (score === null ? "–" : score.toFixed(3));

function row(task) {
  const button = make("button", { type: "button", onclick: () => toggle(task, button) }, name(task.task));
  button.dataset.task = task.task;
  button.setAttribute("aria-expanded", opened.has(task.task));
  return make(
    "tr", {},
    make("th", { scope: "row" }, button),
    cell(fraction(task.score), "number"), cell(task.metric), cell(task.kind, "wide"),
    cell(number(task.rows.train), "number wide"), cell(task.champion === null ? "–" : name(task.champion), "wide"),
    cell(moment(task.created_at), "wide"),
  );
}

async function toggle(task, button) {
  const below = opened.get(task.task) ?? make("tr", { className: "detail" }, make("td", { colSpan: 7 }));
  if (opened.delete(task.task)) below.remove();
  else {
    opened.set(task.task, below);
    button.closest("tr").after(below);
  }
  button.setAttribute("aria-expanded", opened.has(task.task));
  if (!below.isConnected) return;
  try {
    below.firstChild.replaceChildren(...(await detail(task)));
  } catch (error) {
    below.firstChild.replaceChildren(make("p", { className: "wrong" }, error.message));
  }
}

async function detail(task) {
  const [edges, versions] = await Promise.all([
    task.champion === null ? [] : asked(`/v1/lineage?${new URLSearchParams({ delta: task.champion })}`),
    everything(`/v1/deltas?${new URLSearchParams({ task: task.task })}`, "delta"),
  ]);
  const rows = Object.entries(task.rows).map(([split, n]) => `${number(n)} ${split}`).join(", ");
  const facts = [task.kind, task.labels ? counted(task.labels, "label") : null, `rows: ${rows}`, `registered ${moment(task.created_at)}`];
  const can = [...byId("task").options].some((option) => option.value === task.task);
  const choose = () => { byId("task").value = task.task; byId("text").focus(); };
  return [
    make("p", { className: "note" }, facts.filter(Boolean).join(" · ")),
    can ? make("button", { type: "button", onclick: choose }, "Try this task") : make("p", {}, "It is not served on this backbone."),
    ...(task.champion === null ? [] : [make("h3", {}, "Where ", name(task.champion), " came from"), tree(task.champion, edges)]),
    make("h3", {}, "Versions"), table(versions),
  ];
}

/** What a delta came from, and what that came from; a delta that was met before is not followed again. */
function tree(delta, edges, met = new Set()) {
  const own = edges.filter((edge) => edge.delta === delta);
  if (!own.length) return make("p", { className: "note" }, "Learned from scratch.");
  const items = own.map(({ parent, kind, weight, gain }) => {
    const how = `${kind.replace("_", " ")}, weight ${number(weight)}${gain === null ? "" : `, gain ${number(gain)}`}`;
    const item = make("li", {}, name(parent), " ", make("span", { className: "note" }, how));
    if (!met.has(parent) && edges.some((edge) => edge.delta === parent)) item.append(tree(parent, edges, met.add(parent)));
    return item;
  });
  return make("ul", {}, ...items);
}

function table(versions) {
  const columns = ["delta", "status", "score", "method", "parameters", "registered"];
  const head = columns.map((column) => make("th", { scope: "col", className: ["score", "parameters"].includes(column) ? "number" : "" }, column));
  const rows = versions.reverse().map((own) => {
    const status = make("span", { className: own.status === "champion" ? "champion" : "" }, own.status);
    const why = own.reason ? [make("span", { className: "note" }, `: ${own.reason}`)] : [];
    const cells = [cell(fraction(own.score), "number"), cell(own.method), cell(number(own.parameters), "number"), cell(moment(own.created_at))];
    return make("tr", {}, make("th", { scope: "row" }, name(own.delta)), make("td", {}, status, ...why), ...cells);
  });
  const box = make("div", { className: "box", tabIndex: 0, role: "region", ariaLabel: "Versions" });
  box.append(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  return box;
}

byId("filter").addEventListener("input", () => { first = 0; draw(); });
byId("back").addEventListener("click", () => { first -= SHOWN; draw(); });
byId("on").addEventListener("click", () => { first += SHOWN; draw(); });

look();
