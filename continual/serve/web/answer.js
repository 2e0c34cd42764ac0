const LIKELY = 0.01; // least probability of the tasks that are listed beside the one that answered

let pending = new AbortController();

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  pending.abort(); // only the last question is answered
  const { signal } = (pending = new AbortController());
  const [text, second, task] = ["text", "second", "task"].map((id) => byId(id).value);
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const row = { text: second ? [text, second] : text, task: task || null };
    const { predictions } = await fetchJson("/v1/predict", { body: { rows: [row], at_least: LIKELY }, signal });
    byId("answer").replaceChildren(...predictionElements(predictions[0]));
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

const labelElement = (label) => name(typeof label === "number" ? number(label, 4) : label);

function predictionElements({ task, label, score, routed, confidence, abstained, delta, possible, error }) {
  if (abstained) {
    const why = `No answer: the text is like those of none of the tasks.${possible.length ? " The nearest are:" : ""}`;
    return [make("p", {}, why), nearestTasks(possible)];
  }
  const choice = routed ? ` chosen by the router with ${percent(confidence)}` : " as you chose";
  const source = make("p", {}, "by ", name(task), `,${choice}; delta `, name(delta));
  if (error) return [make("p", { className: "wrong" }, escaped(error)), source];
  const probability = score === null ? "" : make("span", { className: "note" }, ` with probability ${percent(score)}`);
  const answer = make("p", { className: "label" }, labelElement(label), probability);
  const otherTasks = possible.filter((candidate) => candidate.task !== task);
  if (!otherTasks.length) return [answer, source];
  return [answer, source, make("p", { className: "note" }, "It may also belong to:"), nearestTasks(otherTasks)];
}

function nearestTasks(possible) {
  const items = possible.map(({ task, confidence, label }) => {
    const answer = label === null ? [] : [": ", labelElement(label)];
    const item = make("li", {}, make("span", {}, name(task), ...answer), make("span", {}, percent(confidence)));
    item.style.setProperty("--share", confidence);
    return item;
  });
  return make("ul", { className: "nearest" }, ...items);
}
