const EVERY = 2000; // milliseconds between two looks at the load

let looking = false;
let next; // look, by the number of its timer
let served = null; // how many tasks were served when they were listed

/** Look at the load, and again after a while; nobody looks at a page that is not visible, or without a key. */
async function look() {
  if (looking || document.visibilityState !== "visible" || !byId("keys").hidden) return;
  looking = true;
  clearTimeout(next);
  try {
    const load = await asked("/v1/load");
    byId("unreached").textContent = "";
    show(load);
    if (load.tasks !== served) {
      served = load.tasks;
      list();
    }
  } catch (error) {
    if (byId("keys").hidden) byId("unreached").textContent = error.message;
  }
  looking = false;
  next = setTimeout(look, EVERY);
}

document.addEventListener("visibilitychange", look);

function show(load) {
  const told = {
    backbone: `of backbone ${load.backbone} `,
    rate: number(load.inputs_per_second, load.inputs_per_second < 10 ? 1 : 0),
    waiting: number(load.waiting),
    wait: `one more would ${load.wait_seconds < 0.05 ? "not wait" : `wait ${number(load.wait_seconds, 1)} s`}`,
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

look();
