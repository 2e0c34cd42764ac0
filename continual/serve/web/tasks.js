const SHOWN = 50; // rows of the table at a time

let tasks = [];
let first = 0; // of the rows that are shown
const opened = new Map(); // the row below a task's, by its name

/** List the tasks that are served, to choose from, and all that are registered. */
async function list() {
  try {
    const [, ...models] = (await asked("/v1/models")).data; // the first is the backbone
    const chosen = byId("task").value;
    const options = models.map(({ id }) => make("option", { value: id }, visible(id)));
    byId("task").replaceChildren(byId("task").options[0], ...options);
    byId("task").value = models.some(({ id }) => id === chosen) ? chosen : "";
    const tell = (n) => (byId("count").textContent = `${number(n)} tasks are read …`);
    tasks = await everything("/v1/tasks", "task", { tell });
    opened.clear();
    draw();
  } catch (error) {
    served = null; // list them with the next look
    byId("count").textContent = error.message;
  }
}

function draw() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  const found = tasks.filter(({ task, kind, metric }) => {
    const told = `${task} ${kind} ${metric}`.toLowerCase();
    return words.every((word) => told.includes(word));
  });
  first = Math.min(first, Math.floor(Math.max(found.length - 1, 0) / SHOWN) * SHOWN);
  const part = found.slice(first, first + SHOWN);
  const held = document.activeElement.dataset.task;
  byId("rows").replaceChildren(...part.flatMap((own) => [row(own), opened.get(own.task) ?? []].flat()));
  if (held) [...byId("rows").querySelectorAll("button")].find((button) => button.dataset.task === held)?.focus();
  const some = found.length < tasks.length ? `${number(found.length)} of ` : "";
  const range = found.length > SHOWN ? `, ${number(first + 1)} to ${number(first + part.length)} shown` : "";
  byId("count").textContent = `${some}${counted(tasks.length, "task")}${range}`;
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
    "tr",
    {},
    make("th", { scope: "row" }, button),
    cell(fraction(task.score), "number"),
    cell(task.metric, "metric"),
    cell(task.kind, "wide"),
    cell(number(task.rows.train), "number wide"),
    cell(task.champion === null ? "–" : name(task.champion), "wide"),
    cell(moment(task.created_at), "moment wide"),
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
    everything("/v1/deltas", "delta", { which: { task: task.task } }),
  ]);
  const rows = Object.entries(task.rows).map(([split, n]) => `${number(n)} ${split}`).join(", ");
  const labels = task.labels ? [counted(task.labels, "label")] : [];
  const facts = [task.kind, ...labels, `rows: ${rows}`, `registered ${moment(task.created_at)}`].join(" · ");
  const told = [make("p", { className: "note" }, facts), tryIt(task)];
  if (task.champion !== null) {
    told.push(make("h3", {}, "Where ", name(task.champion), " came from"), tree(task.champion, edges));
  }
  return [...told, make("h3", {}, "Versions"), table(versions)];
}

function tryIt({ task }) {
  if (![...byId("task").options].some(({ value }) => value === task)) {
    return make("p", {}, "It is not served on this backbone.");
  }
  const onclick = () => {
    byId("task").value = task;
    byId("text").focus();
  };
  return make("button", { type: "button", onclick }, "Try this task");
}

/** What a delta came from, and what that came from; a delta that was met before is not followed again. */
function tree(delta, edges, met = new Set()) {
  const own = edges.filter((edge) => edge.delta === delta);
  if (!own.length) return make("p", { className: "note" }, "Learned from scratch.");
  const items = own.map(({ parent, kind, weight, gain }) => {
    const how = `${kind.replace("_", " ")}, weight ${number(weight)}${gain === null ? "" : `, gain ${number(gain)}`}`;
    const item = make("li", {}, name(parent), " ", make("span", { className: "note" }, how));
    const further = !met.has(parent) && edges.some((edge) => edge.delta === parent);
    if (further) item.append(tree(parent, edges, met.add(parent)));
    return item;
  });
  return make("ul", {}, ...items);
}

const COLUMNS = { delta: "", status: "", score: "number", method: "", parameters: "number", registered: "" };

function table(versions) {
  const head = Object.entries(COLUMNS).map(([text, className]) => make("th", { scope: "col", className }, text));
  const box = make("div", { className: "box", tabIndex: 0, role: "region", ariaLabel: "Versions" });
  const rows = versions.reverse().map(version); // the newest first
  box.append(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  return box;
}

function version({ delta, status, reason, score, method, parameters, created_at }) {
  const why = reason ? [make("span", { className: "note" }, `: ${reason}`)] : [];
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, name(delta)),
    make("td", {}, make("span", { className: status === "champion" ? status : "" }, status), ...why),
    cell(fraction(score), "number"),
    cell(method),
    cell(number(parameters), "number"),
    cell(moment(created_at), "moment"),
  );
}

byId("filter").addEventListener("input", () => {
  first = 0;
  draw();
});
for (const [id, other, step] of [["back", "on", -SHOWN], ["on", "back", SHOWN]]) {
  byId(id).addEventListener("click", () => {
    first += step;
    draw();
    if (byId(id).disabled) byId(other).focus(); // the focus would be lost
  });
}
