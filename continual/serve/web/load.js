const POLL_MILLISECONDS = 2000;

let polling = false;
let timer;
let listedTasks = null; // number of tasks that were served when they were last listed

/** Show the load, now and periodically; not while the page is hidden or a key is missing. */
async function pollLoad() {
  if (polling || document.visibilityState !== "visible" || !byId("keys").hidden) return;
  polling = true;
  clearTimeout(timer);
  try {
    const load = await fetchJson("/v1/load");
    byId("unreached").textContent = "";
    showLoad(load);
    if (load.tasks !== listedTasks) {
      listedTasks = load.tasks;
      listTasks();
    }
  } catch (error) {
    if (byId("keys").hidden) byId("unreached").textContent = error.message;
  }
  polling = false;
  timer = setTimeout(pollLoad, POLL_MILLISECONDS);
}

document.addEventListener("visibilitychange", pollLoad);

function showLoad(load) {
  const texts = {
    backbone: `of backbone ${load.backbone} `,
    rate: number(load.inputs_per_second, load.inputs_per_second < 10 ? 1 : 0),
    waiting: number(load.waiting),
    wait: `one more would ${load.wait_seconds < 0.05 ? "not wait" : `wait ${number(load.wait_seconds, 1)} s`}`,
    tasks: number(load.tasks),
    since: `running for ${duration(load.seconds)}`,
    device: number(load.on_device),
    memory: `${number(load.in_memory)} in memory`,
    peak: number(Math.max(...load.inputs_by_second)),
  };
  for (const [id, text] of Object.entries(texts)) byId(id).textContent = text;
  const highest = Math.max(1, ...load.inputs_by_second);
  const curve = load.inputs_by_second.map((n, i) => `${i} ${(23 - (22 * n) / highest).toFixed(2)}`).join(" L");
  byId("spark").children[0].setAttribute("d", `M0 24 L${curve} L59 24 Z`);
  byId("spark").children[1].setAttribute("d", `M${curve}`);
}

function duration(seconds) {
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, size]) => seconds >= size) ?? units.at(-1);
  return counted(Math.floor(seconds / size), unit);
}

pollLoad();
