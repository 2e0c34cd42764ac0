const TABLE_ROWS = 50; // rows of the table at a time

let tasks = [];
let first = 0; // index of the first row that is shown
const details = new Map(); // the row of details below a task's row, by the task's name

/** Fill the choice of tasks with those that are served, and the table with all that are registered. */
async function listTasks() {
  try {
    const [, ...models] = (await fetchJson("/v1/models")).data; // the first is the backbone
    const chosen = byId("task").value;
    const options = models.map(({ id }) => make("option", { value: id }, escaped(id)));
    byId("task").replaceChildren(byId("task").options[0], ...options);
    byId("task").value = models.some(({ id }) => id === chosen) ? chosen : "";
    const onProgress = (n) => (byId("count").textContent = `${number(n)} tasks are read …`);
    tasks = await fetchAllRows("/v1/tasks", "task", { onProgress });
    details.clear();
    drawTable();
  } catch (error) {
    listedTasks = null; // try again when the load is polled next
    byId("count").textContent = error.message;
  }
}

function drawTable() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  const matches = tasks.filter(({ task, kind, metric }) => {
    const searched = `${task} ${kind} ${metric}`.toLowerCase();
    return words.every((word) => searched.includes(word));
  });
  first = Math.min(first, Math.floor(Math.max(matches.length - 1, 0) / TABLE_ROWS) * TABLE_ROWS);
  const page = matches.slice(first, first + TABLE_ROWS);
  const focused = document.activeElement.dataset.task;
  byId("rows").replaceChildren(...page.flatMap((task) => [taskRow(task), details.get(task.task) ?? []].flat()));
  if (focused) [...byId("rows").querySelectorAll("button")].find((button) => button.dataset.task === focused)?.focus();
  const filtered = matches.length < tasks.length ? `${number(matches.length)} of ` : "";
  const range = matches.length > TABLE_ROWS ? `, ${number(first + 1)} to ${number(first + page.length)} shown` : "";
  byId("count").textContent = `${filtered}${counted(tasks.length, "task")}${range}`;
  byId("back").disabled = first === 0;
  byId("on").disabled = first + TABLE_ROWS >= matches.length;
  byId("back").parentElement.hidden = matches.length <= TABLE_ROWS;
}

const cell = (content, className = "") => make("td", { className }, content);
const fraction = (score) => (score === null ? "–" : score.toFixed(3));

function taskRow(task) {
  const button = make("button", { type: "button", onclick: () => toggleDetails(task, button) }, name(task.task));
  button.dataset.task = task.task;
  button.setAttribute("aria-expanded", details.has(task.task));
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, button),
    cell(fraction(task.score), "number"),
    cell(task.metric, "metric"),
    cell(task.kind, "wide"),
    cell(number(task.rows.train), "number wide"),
    cell(task.champion === null ? "–" : name(task.champion), "wide"),
    cell(task.champion === null ? "–" : moment(task.champion_created_at), "moment wide"),
  );
}

async function toggleDetails(task, button) {
  const row = details.get(task.task) ?? make("tr", { className: "detail" }, make("td", { colSpan: 7 }));
  if (details.delete(task.task)) row.remove();
  else {
    details.set(task.task, row);
    button.closest("tr").after(row);
  }
  button.setAttribute("aria-expanded", details.has(task.task));
  if (!row.isConnected) return;
  try {
    row.firstChild.replaceChildren(...(await detailElements(task)));
  } catch (error) {
    row.firstChild.replaceChildren(make("p", { className: "wrong" }, error.message));
  }
}

async function detailElements(task) {
  const [edges, versions] = await Promise.all([
    task.champion === null ? [] : fetchJson(`/v1/lineage?${new URLSearchParams({ delta: task.champion })}`),
    fetchAllRows("/v1/deltas", "delta", { query: { task: task.task } }),
  ]);
  const rows = Object.entries(task.rows).map(([split, n]) => `${number(n)} ${split}`).join(", ");
  const labels = task.labels ? [counted(task.labels, "label")] : [];
  const facts = [task.kind, ...labels, `rows: ${rows}`, `registered ${moment(task.created_at)}`].join(" · ");
  const elements = [make("p", { className: "note" }, facts), tryButton(task)];
  if (task.champion !== null) {
    elements.push(make("h3", {}, "Where ", name(task.champion), " came from"), lineageTree(task.champion, edges));
  }
  return [...elements, make("h3", {}, "Versions"), versionsTable(versions)];
}

function tryButton({ task }) {
  if (![...byId("task").options].some(({ value }) => value === task)) {
    return make("p", {}, "It is not served on this backbone.");
  }
  const onclick = () => {
    byId("task").value = task;
    byId("text").focus();
  };
  return make("button", { type: "button", onclick }, "Try this task");
}

/** Make the tree of a delta's ancestors; the ancestors of a delta are expanded only where it comes first. */
function lineageTree(delta, edges, expanded = new Set()) {
  const parents = edges.filter((edge) => edge.delta === delta);
  if (!parents.length) return make("p", { className: "note" }, "Learned from scratch.");
  const items = parents.map(({ parent, kind, weight, gain }) => {
    const how = `${kind.replace("_", " ")}, weight ${number(weight)}${gain === null ? "" : `, gain ${number(gain)}`}`;
    const item = make("li", {}, name(parent), " ", make("span", { className: "note" }, how));
    const hasNewAncestors = !expanded.has(parent) && edges.some((edge) => edge.delta === parent);
    if (hasNewAncestors) item.append(lineageTree(parent, edges, expanded.add(parent)));
    return item;
  });
  return make("ul", {}, ...items);
}

const COLUMNS = { delta: "", status: "", score: "number", method: "", parameters: "number", registered: "" };

function versionsTable(versions) {
  const head = Object.entries(COLUMNS).map(([text, className]) => make("th", { scope: "col", className }, text));
  const box = make("div", { className: "box", tabIndex: 0, role: "region", ariaLabel: "Versions" });
  const rows = versions.reverse().map(versionRow); // the newest first
  box.append(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  return box;
}

function versionRow({ delta, status, reason, score, method, parameters, created_at }) {
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
  drawTable();
});
for (const [id, opposite, step] of [["back", "on", -TABLE_ROWS], ["on", "back", TABLE_ROWS]]) {
  byId(id).addEventListener("click", () => {
    first += step;
    drawTable();
    if (byId(id).disabled) byId(opposite).focus(); // a disabled button loses the focus
  });
}
